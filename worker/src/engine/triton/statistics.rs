//! What a server that has Triton's statistics extension says of its own time.

use modelmeter_common::{engine::Protocol, part::ServerTimes};
use modelmeter_proto::kserve::{
    ModelStatisticsRequest, ModelStatisticsResponse, ServerMetadataRequest, StatisticDuration,
    grpc_inference_service_client::GrpcInferenceServiceClient,
};
use std::time::Duration;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const METHOD: &str = "/inference.GRPCInferenceService/ModelStatistics";
const EXTENSION: &str = "statistics";
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a server that keeps statistics.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    channel: Channel,
    model: String,
}

impl Statistics {
    /// None where the server keeps none, or speaks a protocol that has none.
    pub async fn of(protocol: Protocol, address: &str, model: &str) -> Option<Self> {
        if protocol != Protocol::KserveV2 {
            return None;
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
        let channel = endpoint.connect_timeout(CALL_TIMEOUT).timeout(CALL_TIMEOUT).connect().await.ok()?;
        let mut client = GrpcInferenceServiceClient::new(channel.clone());
        let metadata = client.server_metadata(ServerMetadataRequest {}).await.ok()?.into_inner();
        metadata.extensions.iter().any(|name| name == EXTENSION).then(|| Self { channel, model: model.to_owned() })
    }

    /// The totals since the model was loaded, over its versions; none where the server does not answer.
    pub async fn read(&self) -> Option<ServerTimes> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.ok()?;
        let request = ModelStatisticsRequest { name: self.model.clone(), version: String::new() };
        let path = PathAndQuery::from_static(METHOD);
        let codec = ProstCodec::<ModelStatisticsRequest, ModelStatisticsResponse>::default();
        let reply = client.unary(tonic::Request::new(request), path, codec).await.ok()?.into_inner();
        Some(total(&reply))
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
