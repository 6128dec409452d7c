//! The world from a client's chair: the store, and jobs handed in and followed as a person or a program would.
//!
//! One place for the demo, the benchmarks and the tests, so that all of them come in by the product's own ways: the `starling`
//! program and the REST API.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_manager::view::{DomainDoc, JobDoc};
use serde::de::DeserializeOwned;
use storage::s3::{S3Config, Secret, Store};
use tokio::io::AsyncWriteExt as _;

use super::{DomainAccess, S3Access, World};
use crate::process::{tied, workspace_binary};

const LOOK: Duration = Duration::from_millis(50);

/// A client of one domain. It knows the world as it was when it was made: a restarted cluster manager has another console.
#[derive(Clone, Debug)]
pub struct Client {
    state: PathBuf,
    home: DomainAccess,
    http: reqwest::Client,
}

impl World {
    /// Of the first domain.
    pub fn client(&self) -> Result<Client> {
        self.client_of(0)
    }

    /// Of the `n`-th domain.
    pub fn client_of(&self, n: usize) -> Result<Client> {
        let home = self.document.domains.get(n).context("find the domain")?.clone();
        let http = storage::fetch::http().no_proxy().build()?;
        Ok(Client { state: self.state.clone(), home, http })
    }
}

impl Client {
    pub fn home(&self) -> &DomainAccess {
        &self.home
    }

    /// The `starling` program, told which world it is; its output is for whoever runs it.
    ///
    /// # Errors
    /// It was not built.
    pub fn starling(&self) -> Result<tokio::process::Command> {
        let mut starling = tokio::process::Command::from(tied(workspace_binary("starling")?));
        starling.arg("--state").arg(&self.state).args(["--domain", &self.home.name]).kill_on_drop(true);
        Ok(starling)
    }

    /// Hands a job document in; gives the job's id.
    ///
    /// # Errors
    /// It is refused, or the cluster manager is not reached; the text is what `starling` says.
    pub async fn submit(&self, job: &str) -> Result<String> {
        let mut starling = self.starling()?;
        starling.args(["--json", "submit", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = starling.spawn().context("run starling")?;
        let mut input = child.stdin.take().context("speak to starling")?;
        input.write_all(job.as_bytes()).await.context("give starling the job")?;
        drop(input);
        let output = child.wait_with_output().await.context("wait for starling")?;
        let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "starling: {}{}", said.trim(), complaint.trim());
        let job: JobDoc =
            serde_json::from_str(&said).with_context(|| format!("understand what starling says: {said}"))?;
        Ok(job.id)
    }

    pub async fn job(&self, id: &str) -> Result<JobDoc> {
        self.get(&format!("api/jobs/{id}")).await
    }

    /// All domains as the home sees them.
    pub async fn domains(&self) -> Result<Vec<DomainDoc>> {
        self.get("api/domains").await
    }

    /// The job once it is done, failed or cancelled.
    pub async fn ended(&self, id: &str) -> Result<JobDoc> {
        loop {
            let job = self.job(id).await?;
            if job.ended_at.is_some() {
                return Ok(job);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.http.get(format!("{}/{path}", self.home.console_url)).send().await?.error_for_status()?;
        answer.json().await.with_context(|| format!("understand {path}"))
    }
}

impl S3Access {
    pub fn config(&self) -> S3Config {
        S3Config {
            endpoint: Some(self.endpoint.clone()),
            region: self.region.clone(),
            access_key: Some(self.access_key.clone()),
            secret_key: Some(Secret::new(self.secret_key.clone())),
            ..S3Config::default()
        }
    }

    pub async fn store(&self) -> Result<Store> {
        Ok(Store::connect(&self.config()).await?)
    }
}
