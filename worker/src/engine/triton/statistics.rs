//! What a server that has Triton's statistics extension says of its own time.

use crate::inspector::kserve_v2;
use modelmeter_common::{engine::Protocol, part::ServerTimes};
use modelmeter_meter::{endpoint::Endpoint, unary};
use modelmeter_proto::kserve::{ModelStatisticsRequest, ModelStatisticsResponse, StatisticDuration};
use std::time::Duration;

const METHOD: &str = "/inference.GRPCInferenceService/ModelStatistics";
const EXTENSION: &str = "statistics";
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that keeps statistics.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    endpoint: Endpoint,
    model: String,
}

impl Statistics {
    /// None where the server keeps none, or speaks a protocol that has none.
    pub async fn of(protocol: Protocol, endpoint: &Endpoint, model: &str) -> Option<Self> {
        if protocol != Protocol::KserveV2 {
            return None;
        }
        let server = kserve_v2::server(endpoint, CALL_TIMEOUT).await.ok()?;
        let keeps = server.extensions.iter().any(|name| name == EXTENSION);
        keeps.then(|| Self { endpoint: endpoint.clone(), model: model.to_owned() })
    }

    /// The totals since the model was loaded, over its versions; none where the server does not answer.
    pub async fn read(&self) -> Option<ServerTimes> {
        let question = ModelStatisticsRequest { name: self.model.clone(), version: String::new() };
        let answer = unary::ask(&self.endpoint, METHOD, &question, CALL_TIMEOUT).await;
        answer.ok().map(|reply: ModelStatisticsResponse| total(&reply))
    }
}

fn total(reply: &ModelStatisticsResponse) -> ServerTimes {
    let ns = |duration: Option<StatisticDuration>| duration.map_or(0, |duration| duration.ns);
    reply.model_stats.iter().fold(ServerTimes::default(), |sum, version| {
        let stats = version.inference_stats.unwrap_or_default();
        sum.plus(ServerTimes {
            requests: stats.success.map_or(0, |success| success.count),
            executions: version.execution_count,
            queue_ns: ns(stats.queue),
            compute_input_ns: ns(stats.compute_input),
            compute_infer_ns: ns(stats.compute_infer),
            compute_output_ns: ns(stats.compute_output),
        })
    })
}
