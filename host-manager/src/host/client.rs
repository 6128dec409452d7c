//! Speaks to guests: starts a task and hears of it until its end.

use std::time::Duration;

use reqwest::{Client, Response, Url};

use crate::guest::task::{Order, TaskState};
use crate::vm::Vm;

/// Pause before a guest is asked again that did not answer. When it is dead, its driver says so first.
const RETRY: Duration = Duration::from_millis(200);
/// Bytes of one state; the guest's outputs are a few lines each.
const LINE_BYTES_MAX: usize = 1 << 20;

/// An HTTP client for the guests of one host.
#[derive(Clone, Debug)]
pub struct GuestClient(Client);

#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("the guest did not answer")]
    Http(#[from] reqwest::Error),
    #[error("the guest broke off before the end")]
    BrokeOff,
    #[error("the guest sent nonsense")]
    Json(#[from] serde_json::Error),
    #[error("the guest sent a state of more than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

impl GuestClient {
    /// Guests are on loopback or the host's own network: no proxy, no TLS, no roots in memory.
    pub fn new() -> reqwest::Result<Self> {
        let builder = storage::fetch::http().no_proxy().tls_certs_only([]).connect_timeout(Duration::from_secs(5));
        Ok(Self(builder.build()?))
    }

    /// Starts the task if the guest does not know it, and passes on each state until the final one. Trouble on the way is
    /// overcome by asking again; who knows that the guest is gone drops the future.
    pub async fn follow(&self, vm: &Vm, task: &str, order: &Order, mut on_state: impl FnMut(TaskState)) {
        while let Err(error) = self.follow_once(vm, task, order, &mut on_state).await {
            tracing::debug!(task, error = %error, cause = ?std::error::Error::source(&error).map(ToString::to_string), "asking again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends the task and removes its files; fine when it is unknown.
    pub async fn forget(&self, vm: &Vm, task: &str) {
        let request = self.0.delete(place(vm, task, None)).bearer_auth(&vm.token).timeout(Duration::from_secs(10));
        if let Err(error) = request.send().await.and_then(Response::error_for_status) {
            tracing::warn!(task, error = %error.without_url(), "the guest did not forget the task");
        }
    }

    async fn follow_once(
        &self,
        vm: &Vm,
        task: &str,
        order: &Order,
        on_state: &mut impl FnMut(TaskState),
    ) -> Result<(), ClientError> {
        let start =
            self.0.put(place(vm, task, None)).bearer_auth(&vm.token).json(order).timeout(Duration::from_secs(10));
        start.send().await?.error_for_status()?;
        let events = self.0.get(place(vm, task, Some("events"))).bearer_auth(&vm.token);
        let mut events = events.send().await?.error_for_status()?;
        let mut line = Vec::new();
        while let Some(chunk) = events.chunk().await? {
            for byte in chunk {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let state: TaskState = serde_json::from_slice(&line)?;
                line.clear();
                let ended = state.state.is_final();
                on_state(state);
                if ended {
                    return Ok(());
                }
            }
            if line.len() > LINE_BYTES_MAX {
                return Err(ClientError::TooLong);
            }
        }
        Err(ClientError::BrokeOff)
    }
}

fn place(vm: &Vm, task: &str, below: Option<&str>) -> Url {
    let mut url = Url::parse(&format!("http://{}/tasks", vm.address)).expect("an address makes a URL");
    url.path_segments_mut().expect("http has a path").push(task).extend(below);
    url
}
