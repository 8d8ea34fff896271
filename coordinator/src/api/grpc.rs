//! The gRPC server: control for users, work for workers, health and reflection for everybody.

use super::{control::ControlApi, work::WorkApi};
use crate::core::Core;
use modelmeter_proto::{
    DESCRIPTORS,
    control::{control_server::ControlServer, work_server::WorkServer},
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

/// The largest call: a request with thousands of labels and settings; artifacts come in pieces.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Serves until `stop`.
pub async fn run(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) {
    let control = ControlServer::new(ControlApi::new(core.clone(), stop.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let work = WorkServer::new(WorkApi::new(core)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<ControlServer<ControlApi>>().await;
    health_reporter.set_serving::<WorkServer<WorkApi>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were compiled with this build");
    let served = Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(20)))
        .add_service(control)
        .add_service(work)
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC server ended");
    }
}
