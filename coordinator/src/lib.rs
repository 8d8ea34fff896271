//! The coordinator: accepts requests, expands them, schedules the tasks, collects and folds the results.
//!
//! It never measures and never imports the worker: the two meet in `proto` and `common`.

pub mod hub;
