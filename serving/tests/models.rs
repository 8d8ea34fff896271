//! The built-in models on every engine that is here: they load, run, and mean something.

#![allow(clippy::unwrap_used)]

mod support;

use modelmeter_serving::reference;
use support::{Server, engines, floats, options, sample};

/// Mean over the logits of their standard deviation between the items of a batch.
fn spread(logits: &[f32], batch: usize) -> f64 {
    let classes = logits.len() / batch;
    let each = (0..classes).map(|class| {
        let column: Vec<f64> = (0..batch).map(|item| f64::from(logits[item * classes + class])).collect();
        let mean = column.iter().sum::<f64>() / batch as f64;
        (column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (batch - 1) as f64).sqrt()
    });
    each.sum::<f64>() / classes as f64
}

fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_model_runs_alike_on_every_engine_and_tells_inputs_apart() {
    const BATCH: usize = 3;
    let engines = engines();
    for name in reference::NAMES {
        let mut by_engine: Vec<Vec<f32>> = Vec::new();
        for engine in &engines {
            let mut server = Server::start(engine, name).await;
            let response = server.infer(sample(name, BATCH, 7)).await.unwrap();
            let logits = floats(&response, 0);
            let classes = logits.len() / BATCH;
            assert_eq!(response.outputs[0].shape, [BATCH as i64, classes as i64]);
            assert!(logits.iter().all(|v| v.is_finite()), "{engine} {name}");
            assert!(logits.iter().all(|v| *v == 0.0 || v.abs() > f32::MIN_POSITIVE), "{engine} {name} has denormals");
            let spread = spread(&logits, BATCH);
            let level = logits.iter().map(|v| f64::from(v.abs())).sum::<f64>() / logits.len() as f64;
            eprintln!("{engine} {name}: logits differ by {spread:.2} between inputs, mean magnitude {level:.2}");
            assert!(spread >= 1.0, "{engine} {name}: logits differ by {spread} between inputs");
            assert!(level < 50.0 * spread, "{engine} {name}: magnitude {level}, spread {spread}");
            // The first item alone gives what it gave among others.
            let alone = floats(&server.infer(sample(name, 1, 7)).await.unwrap(), 0);
            let off = largest_difference(&alone, &logits[..classes]);
            assert!(off < 1e-3 * spread, "{engine} {name}: alone it differs by {off}");
            server.stop().await.unwrap();
            by_engine.push(logits);
        }
        if let [rten, onnx] = &by_engine[..] {
            let off = largest_difference(rten, onnx);
            assert!(off < 1e-3 * spread(rten, BATCH), "{name}: rten and onnx differ by {off}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_how_a_model_runs_and_not_what_it_gives() {
    for engine in engines() {
        let mut plain = Server::start(engine, "mlp").await;
        let expected = floats(&plain.infer(sample("mlp", 2, 1)).await.unwrap(), 0);
        plain.stop().await.unwrap();
        let mut tuned = options(engine, "mlp");
        let extra = if engine == "rten" {
            ("prepack_weights", true.into())
        } else {
            ("graph_optimization_level", "basic".into())
        };
        tuned.settings = [("threads", 1.into()), ("instances", 2.into()), extra].map(|(k, v)| (k.to_owned(), v)).into();
        let mut server = Server::with(tuned).await;
        for _ in 0..4 {
            let logits = floats(&server.infer(sample("mlp", 2, 1)).await.unwrap(), 0);
            assert!(largest_difference(&logits, &expected) < 1e-3, "{engine}");
        }
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_token_does_not_count() {
    let mut server = Server::start("rten", "bert_small").await;
    let first = sample("bert_small", 1, 3);
    let mut second = first.clone();
    // Token 120 is masked, token 50 is not.
    let flip = |request: &mut modelmeter_proto::kserve::ModelInferRequest, token: usize| {
        let mut ids = request.raw_input_contents[0].to_vec();
        ids[token * 8] ^= 1;
        request.raw_input_contents[0] = ids.into();
    };
    let expected = floats(&server.infer(first).await.unwrap(), 0);
    flip(&mut second, 120);
    assert!(largest_difference(&floats(&server.infer(second.clone()).await.unwrap(), 0), &expected) < 1e-6);
    flip(&mut second, 50);
    assert!(largest_difference(&floats(&server.infer(second).await.unwrap(), 0), &expected) > 1e-3);
    server.stop().await.unwrap();
}
