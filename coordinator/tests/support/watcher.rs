//! A watcher of a request, over gRPC.

use modelmeter_common::{event::RequestEvent, status::Status, task::TaskState};
use modelmeter_proto::control::{WatchReply, WatchRequest, control_client::ControlClient};
use std::time::Duration;
use tonic::{Streaming, transport::Channel};

const LIMIT: Duration = Duration::from_secs(20);

pub struct Watcher {
    pub replies: Streaming<WatchReply>,
    pub status: Status,
    pub events: Vec<RequestEvent>,
    pub last: WatchReply,
}

impl Watcher {
    /// Begins where the coordinator sends the whole.
    pub async fn begin(control: &mut ControlClient<Channel>, request: WatchRequest) -> Self {
        let mut replies = control.watch(request).await.unwrap().into_inner();
        let last = replies.message().await.unwrap().unwrap();
        let status = serde_json::from_str(&last.status_json).unwrap();
        Self { replies, status, events: Vec::new(), last }
    }

    /// Takes replies until what was told so far will do.
    pub async fn until(&mut self, will_do: impl Fn(&Self) -> bool) {
        while !will_do(self) {
            let next = tokio::time::timeout(LIMIT, self.replies.message()).await.expect("it is told").unwrap();
            self.take(next.expect("the request goes on"));
        }
    }

    pub fn take(&mut self, reply: WatchReply) {
        if !reply.status_json.is_empty() {
            self.status = serde_json::from_str(&reply.status_json).unwrap();
        }
        for event in events(&reply) {
            self.status.apply(&event);
            self.events.push(event);
        }
        self.last = reply;
    }

    pub fn count(&self, state: TaskState) -> usize {
        self.status.cells.iter().filter(|cell| cell.state == state).count()
    }
}

pub fn events(reply: &WatchReply) -> Vec<RequestEvent> {
    reply.events_json.iter().map(|json| serde_json::from_str(json).unwrap()).collect()
}
