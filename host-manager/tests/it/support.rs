//! A store, a film and a guest for the tests.

pub mod film;
pub mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use host_manager::guest::task::{Order, TaskState};
use host_manager::vm::process::ProcessDriver;
use host_manager::vm::{Driver, Vm, VmName, VmSpec};
use reqwest::{Client, Response};

/// Longest wait for a state that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The `guest` binary as a machine, and a client for it.
pub struct Guest {
    pub driver: Arc<ProcessDriver>,
    pub vm: Vm,
    client: Client,
}

impl Guest {
    pub async fn start(dir: &Path, ffmpeg: &str) -> Self {
        let options = ["--order-wait", "3", "--ffmpeg", ffmpeg].map(str::to_owned);
        let command = [env!("CARGO_BIN_EXE_guest").to_owned()].into_iter().chain(options).collect();
        let driver = Arc::new(ProcessDriver::open(dir, command).unwrap());
        let vm = driver.create(&VmName::new("g").unwrap(), &VmSpec { slots: 1 }).await.unwrap();
        let client = storage::fetch::http().no_proxy().tls_certs_only([]).build().unwrap();
        Self { driver, vm, client }
    }

    fn place(&self, path: &str) -> String {
        format!("http://{}/{path}", self.vm.address)
    }

    pub async fn put(&self, task: &str, order: impl Into<Order>) -> TaskState {
        let order = order.into();
        let put = self.client.put(self.place(&format!("tasks/{task}"))).bearer_auth(&self.vm.token).json(&order);
        put.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    pub async fn get(&self, path: &str, token: &str) -> Response {
        self.client.get(self.place(path)).bearer_auth(token).send().await.unwrap()
    }

    pub async fn delete(&self, task: &str) {
        let delete = self.client.delete(self.place(&format!("tasks/{task}"))).bearer_auth(&self.vm.token);
        assert_eq!(delete.send().await.unwrap().status(), 204);
    }

    /// All states told until the first that `wanted` accepts, that one included.
    pub async fn states_until(&self, task: &str, wanted: impl Fn(&TaskState) -> bool) -> Vec<TaskState> {
        let mut events = self.get(&format!("tasks/{task}/events"), &self.vm.token).await.error_for_status().unwrap();
        let (mut states, mut line) = (Vec::<TaskState>::new(), Vec::new());
        let listen = async {
            while let Some(chunk) = events.chunk().await.unwrap() {
                for byte in chunk {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    states.push(serde_json::from_slice(&line).unwrap());
                    line.clear();
                    if states.last().is_some_and(&wanted) {
                        return;
                    }
                }
            }
            panic!("the stream ended before the wanted state: {:?}", states.last());
        };
        tokio::time::timeout(PATIENCE, listen).await.expect("the wanted state in time");
        states
    }

    /// Its final state.
    pub async fn end_of(&self, task: &str) -> TaskState {
        self.states_until(task, |state| state.state.is_final()).await.pop().unwrap()
    }
}

/// Ids of the children of this process's child guests whose command line holds `mark`.
pub fn processes_with(mark: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        // The guest itself names the directory, too; only what it started has an input there.
        if line.contains(mark) && line.contains("-progress") {
            found.push(pid);
        }
    }
    found
}

/// Waits for a state of the outside world.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} in time"));
}

/// Names of what the guests under `dir` keep for their tasks.
pub fn task_dirs(dir: &Path) -> Vec<String> {
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    below(dir)
        .flat_map(|vm| below(&vm.path().join("work")))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}
