//! A custom inspector in Rust: a photo as people send it, not random numbers; each answer's best class is checked.
//!
//! `cargo run --release -p modelmeter --example resnet50_image -- examples/images/hill.ppm`
//!
//! The built-in engines are processes of the `modelmeter` binary, so build that first: `cargo build --release`.

use bytes::Bytes;
use modelmeter::{
    Problem, Profiler,
    inspector::{Inspector, Subject, kserve_v2::KserveV2},
};
use modelmeter_proto::kserve::ModelInferResponse;
use prost::Message;
use std::{fs, path::Path, sync::OnceLock};

const SIDE: usize = 224;
/// Channel by channel, of images with values from 0 to 1; as torchvision's models are fed.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

#[tokio::main]
async fn main() -> Result<(), Problem> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "examples/images/hill.ppm".into());
    let image = Image::read(path.as_ref())?.preprocess();
    let profiles = Profiler::new("resnet50")
        .server_name("rten")
        .inspector_type("resnet50-image", move |subject| Ok(ImageClient::new(image.clone(), subject)))
        .request(|request| request.budget_ms = Some(20_000))
        .show_progress()
        .diagnose(&[1, 4], &["cpu"])
        .await?;
    println!("{profiles}");
    match profiles.iter().find_map(|profile| profile.error.clone()) {
        Some(problem) => Err(problem),
        None => Ok(()),
    }
}

/// Sends one image over and over, and expects the same class each time.
struct ImageClient {
    /// One item, preprocessed.
    image: Bytes,
    batch_size: u32,
    /// Knows the protocol.
    kserve: KserveV2,
    /// The class that the first answer gave the image.
    class: OnceLock<usize>,
}

impl ImageClient {
    fn new(image: Bytes, subject: Subject) -> Self {
        let batch_size = subject.batch_size;
        Self { image, batch_size, kserve: KserveV2::new(subject), class: OnceLock::new() }
    }
}

impl Inspector for ImageClient {
    fn data_preprocess(&self, _nth: u64) -> Result<Vec<Bytes>, Problem> {
        Ok(vec![self.image.repeat(self.batch_size as usize).into()])
    }

    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem> {
        self.kserve.make_request(data)
    }

    fn path(&self) -> &str {
        self.kserve.path()
    }

    fn batch_size(&self) -> u32 {
        self.batch_size
    }

    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        self.kserve.check(message)?;
        let found = best_classes(message, self.batch_size as usize);
        let class = *self.class.get_or_init(|| found.first().copied().unwrap_or_default());
        if found.len() == self.batch_size as usize && found.iter().all(|&one| one == class) {
            return Ok(());
        }
        Err(Problem::invalid("inspector", format!("the image is of class {class}, the answer says {found:?}")))
    }
}

/// The class with the largest logit, of each image of a batch. The response was checked.
fn best_classes(message: &[u8], images: usize) -> Vec<usize> {
    let response = ModelInferResponse::decode(message).unwrap_or_default();
    let raw = response.raw_output_contents.first().cloned().unwrap_or_default();
    let logits: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or_default();
    logits.chunks((logits.len() / images).max(1)).map(best).collect()
}

/// Red, green, blue, row by row.
struct Image {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// Reads a binary PPM file of 8 bits.
    fn read(path: &Path) -> Result<Self, Problem> {
        let wrong = |what: String| Problem::invalid("image", format!("{}: {what}", path.display()));
        let file = fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let mut words = file.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut word = || words.next().and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default().to_owned();
        let (magic, width, height) = (word(), word().parse().unwrap_or(0), word().parse().unwrap_or(0));
        let pixels = words.next().and_then(|rest| rest.strip_prefix(b"255\n")).unwrap_or_default().to_vec();
        if magic != "P6" || pixels.is_empty() || pixels.len() != 3 * width * height {
            return Err(wrong("is not a PPM file of 8 bits".into()));
        }
        Ok(Self { width, height, pixels })
    }

    /// The square in the middle, scaled to 224 by 224 by bilinear interpolation, normalised, channels first.
    fn preprocess(&self) -> Bytes {
        let short = self.width.min(self.height);
        let (left, top) = ((self.width - short) as f32 / 2.0, (self.height - short) as f32 / 2.0);
        let mut out = Vec::with_capacity(3 * SIDE * SIDE * 4);
        for channel in 0..3 {
            for row in 0..SIDE {
                for column in 0..SIDE {
                    let at =
                        |i: usize| ((i as f32 + 0.5) * short as f32 / SIDE as f32 - 0.5).clamp(0.0, short as f32 - 1.0);
                    let value = self.between(left + at(column), top + at(row), channel) / 255.0;
                    out.extend(((value - MEAN[channel]) / DEVIATION[channel]).to_le_bytes());
                }
            }
        }
        out.into()
    }

    /// A value between pixels.
    fn between(&self, x: f32, y: f32, channel: usize) -> f32 {
        let (x0, y0) = (x as usize, y as usize);
        let (x1, y1) = ((x0 + 1).min(self.width - 1), (y0 + 1).min(self.height - 1));
        let pixel = |x: usize, y: usize| f32::from(self.pixels[3 * (y * self.width + x) + channel]);
        let row = |y: usize| pixel(x0, y) * (1.0 - x.fract()) + pixel(x1, y) * x.fract();
        row(y0) * (1.0 - y.fract()) + row(y1) * y.fract()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_proto::kserve::model_infer_response::InferOutputTensor;

    fn client(batch_size: u32) -> ImageClient {
        let subject = Subject {
            model: "m".into(),
            version: String::new(),
            signature: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            batch_size,
            seed: 0,
            data: None,
            output_axes: Default::default(),
        };
        ImageClient::new(Bytes::new(), subject)
    }

    fn response(rows: &[[f32; 3]]) -> Vec<u8> {
        let raw: Vec<u8> = rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        ModelInferResponse {
            outputs: vec![InferOutputTensor {
                name: "logits".into(),
                datatype: "FP32".into(),
                shape: vec![rows.len() as i64, 3],
                ..Default::default()
            }],
            raw_output_contents: vec![raw.into()],
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn an_answer_of_another_class_is_wrong() {
        let client = client(2);
        let (second, third) = ([0.0, 2.0, 1.0], [0.0, 1.0, 2.0]);
        client.check(&response(&[second, second])).unwrap();
        client.check(&response(&[second, second])).unwrap();
        let problem = client.check(&response(&[second, third])).unwrap_err();
        assert!(problem.message.contains("class 1, the answer says [1, 2]"), "{problem}");
        assert!(client.check(&response(&[third, third])).is_err());
        assert!(client.check(&response(&[second])).is_err(), "half of the batch is missing");
    }

    #[test]
    fn an_image_of_one_colour_stays_so() {
        let pixels = [255, 0, 128].repeat(7 * 5);
        let out = Image { width: 7, height: 5, pixels }.preprocess();
        let values: Vec<f32> = out.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(values.len(), 3 * SIDE * SIDE);
        for (channel, colour) in [1.0, 0.0, 128.0 / 255.0].into_iter().enumerate() {
            let expected = (colour - MEAN[channel]) / DEVIATION[channel];
            let plane = &values[channel * SIDE * SIDE..(channel + 1) * SIDE * SIDE];
            assert!(plane.iter().all(|value| (value - expected).abs() < 1e-5));
        }
    }
}
