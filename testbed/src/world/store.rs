//! The world's S3 store: our own server in a process of its own, or any other by its URL.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::board::Board;
use super::document::{S3Access, write_secret};
use crate::process::{Process, Recipe, workspace_binary};
use crate::s3::{Faults, first_line};

/// Which store the world uses.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreOptions {
    /// Use this S3 store instead of starting one; needs the keys below.
    #[arg(long, value_name = "URL", requires_all = ["s3_access_key", "s3_secret_key_file"])]
    pub s3_endpoint: Option<String>,
    #[arg(long, default_value = "us-east-1", value_name = "REGION")]
    pub s3_region: String,
    /// Must exist in a store of others. In ours the other domains' buckets are named BUCKET-DOMAIN.
    #[arg(long, default_value = "films", value_name = "BUCKET")]
    pub s3_bucket: String,
    #[arg(long, value_name = "KEY", requires = "s3_endpoint")]
    pub s3_access_key: Option<String>,
    /// A file whose first line is the secret key.
    #[arg(long, value_name = "FILE", requires = "s3_endpoint")]
    pub s3_secret_key_file: Option<PathBuf>,
    /// BUCKET/PREFIX of our store that no key may touch; may be repeated.
    #[arg(long, value_name = "BUCKET/PREFIX")]
    pub forbid: Vec<String>,
    /// How our store misbehaves.
    #[command(flatten)]
    pub faults: Faults,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            s3_endpoint: None,
            s3_region: "us-east-1".to_owned(),
            s3_bucket: "films".to_owned(),
            s3_access_key: None,
            s3_secret_key_file: None,
            forbid: Vec::new(),
            faults: Faults::default(),
        }
    }
}

/// Starts the store, unless it is another's, and tells each domain how to reach it: ours has a bucket for each, with a key of its own; of
/// another's there is one key, which is the first domain's.
pub(super) async fn open(
    options: &StoreOptions,
    domains: &[String],
    state: &Path,
    processes: &mut Vec<Process>,
    board: &mut Board,
) -> Result<Vec<Option<S3Access>>> {
    let access = |endpoint: &str, access_key: &str, secret_key: String, bucket: &str| S3Access {
        endpoint: endpoint.to_owned(),
        region: options.s3_region.clone(),
        access_key: access_key.to_owned(),
        secret_key,
        bucket: bucket.to_owned(),
    };
    if let (Some(url), Some(key), Some(file)) =
        (&options.s3_endpoint, &options.s3_access_key, &options.s3_secret_key_file)
    {
        board.ready("s3", &format!("another's, at {url}"));
        let first = access(url, key, first_line(file)?, &options.s3_bucket);
        return Ok((0..domains.len()).map(|n| (n == 0).then(|| first.clone())).collect());
    }
    let dir = state.join("s3");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let secret_file = secret(dir.join("secret"))?;
    let others = domains.iter().skip(1).map(|domain| {
        let bucket = format!("{}-{domain}", options.s3_bucket);
        Ok((secret(dir.join(format!("secret-{domain}")))?, bucket))
    });
    let others = others.collect::<Result<Vec<_>>>()?;
    let mut arguments: Vec<_> =
        ["s3", "--access-key", "starling", "--region", &options.s3_region, "--bucket"].map(Into::into).into();
    arguments.extend([options.s3_bucket.clone().into(), "--root".into(), dir.join("objects").into()]);
    arguments.extend(["--secret-key-file".into(), secret_file.clone().into()]);
    arguments.extend(others.iter().map(|(file, bucket)| format!("--own-bucket={bucket}={}", file.display()).into()));
    arguments.extend(options.forbid.iter().map(|prefix| format!("--forbid={prefix}").into()));
    arguments.extend(options.faults.flags().map(Into::into));
    let program = workspace_binary("testbed")?;
    let recipe =
        Recipe { name: "s3".to_owned(), role: "s3".to_owned(), domain: None, program, arguments, log: dir.join("log") };
    board.starting("s3", "starting");
    let mut process = Process::start(recipe)?;
    let endpoint = process.announcement(|line| line.starts_with("http://").then(|| line.to_owned())).await?;
    board.ready("s3", &format!("ready at {endpoint}"));
    processes.push(process);
    let mut all = vec![Some(access(&endpoint, "starling", first_line(&secret_file)?, &options.s3_bucket))];
    for (file, bucket) in others {
        all.push(Some(access(&endpoint, &bucket, first_line(&file)?, &bucket)));
    }
    Ok(all)
}

/// A file with a secret key, made up now if it is not there.
fn secret(file: PathBuf) -> Result<PathBuf> {
    if !file.exists() {
        write_secret(&file, uuid::Uuid::new_v4().simple().to_string().as_bytes())?;
    }
    Ok(file)
}
