//! The worker: consumes task hints, deploys the engine, drives the client while sampling the device,
//! and publishes parts.
//!
//! It cannot compile against the hub, and never imports the coordinator: the two meet in `proto` and `common`.
