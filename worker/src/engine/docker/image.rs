//! The image: pulled as its policy says, and known by its digest.

use super::daemon::{is_missing, refused};
use bollard::{
    Docker,
    errors::Error,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::CreateImageOptions,
};
use futures::StreamExt;
use modelmeter_common::{
    Code, Problem,
    container::{Container, PullPolicy},
};
use std::time::Duration;

/// A pull that says nothing for so long has failed: a daemon that works tells of its progress every second.
const STALLED: Duration = Duration::from_secs(120);

/// An image that is here.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// What its container is made from: whatever its tag means by then.
    pub id: String,
    /// `repository@sha256:…` as its registry knows it; of one that was built here, its id.
    pub digest: String,
}

/// Has the image here.
///
/// # Errors
/// `not_installed` if it is neither here nor to be had, with what the registry said.
pub(super) async fn ensure(docker: &Docker, container: &Container) -> Result<Image, Problem> {
    let name = tagged(&container.image);
    if container.pull != PullPolicy::Always
        && let Some(image) = find(docker, &name).await?
    {
        return Ok(image);
    }
    if container.pull == PullPolicy::Never {
        return Err(missing(format!("image {name} is not here, and its pull policy is never"))
            .with_hint(format!("docker pull {name}, or pull = \"if-missing\"")));
    }
    pull(docker, &name).await?;
    find(docker, &name).await?.ok_or_else(|| missing(format!("image {name} was pulled, and is not here")))
}

async fn find(docker: &Docker, name: &str) -> Result<Option<Image>, Problem> {
    match docker.inspect_image(name).await {
        Ok(found) => Ok(Some(image(name, found))),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(refused(&format!("look for image {name}"), &e)),
    }
}

fn image(name: &str, found: ImageInspect) -> Image {
    let id = found.id.unwrap_or_else(|| name.to_owned());
    let of_repository = |digest: &&String| digest.split('@').next() == Some(repository(name));
    let digests = found.repo_digests.unwrap_or_default();
    let digest = digests.iter().find(of_repository).or(digests.first()).unwrap_or(&id).clone();
    Image { id, digest }
}

async fn pull(docker: &Docker, name: &str) -> Result<(), Problem> {
    tracing::info!(image = name, "pulling");
    let failed = |why: String| {
        missing(format!("image {name} cannot be pulled: {why}")).with_hint(format!(
            "check its name, the network and, for a private one, docker login and docker pull {name}"
        ))
    };
    let options = CreateImageOptions { from_image: Some(name.to_owned()), ..CreateImageOptions::default() };
    let mut progress = std::pin::pin!(docker.create_image(Some(options), None, None));
    loop {
        let next = tokio::time::timeout(STALLED, progress.next()).await;
        match next.map_err(|_| failed(format!("nothing came for {} s", STALLED.as_secs())))? {
            None => return Ok(()),
            Some(Ok(CreateImageInfo { error_detail: Some(detail), .. })) => {
                return Err(failed(detail.message.unwrap_or_else(|| "the daemon does not say why".into())));
            }
            Some(Ok(_)) => {}
            Some(Err(Error::DockerStreamError { error })) => return Err(failed(error)),
            Some(Err(Error::DockerResponseServerError { message, .. })) => return Err(failed(message)),
            Some(Err(e)) => return Err(failed(e.to_string())),
        }
    }
}

fn missing(message: String) -> Problem {
    Problem::new(Code::NotInstalled, message).with_field("image")
}

/// With a tag: without one a daemon may pull all that there are.
fn tagged(name: &str) -> String {
    let has_tag = name.contains('@') || repository(name).len() < name.len();
    if has_tag { name.to_owned() } else { format!("{name}:latest") }
}

/// The name without tag and digest. A colon before the last slash is a port's.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_once() {
        for (name, full) in [
            ("triton", "triton:latest"),
            ("triton:24.10", "triton:24.10"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            ("host:5000/a/b:1", "host:5000/a/b:1"),
            ("a@sha256:0", "a@sha256:0"),
        ] {
            assert_eq!(tagged(name), full);
        }
    }

    #[test]
    fn the_digest_is_the_repositorys_own_or_the_id() {
        let inspect = |digests: &[&str]| ImageInspect {
            id: Some("sha256:1".into()),
            repo_digests: Some(digests.iter().map(|&d| d.to_owned()).collect()),
            ..ImageInspect::default()
        };
        assert_eq!(image("a:1", inspect(&["b@sha256:2", "a@sha256:3"])).digest, "a@sha256:3");
        assert_eq!(image("c:1", inspect(&["b@sha256:2"])).digest, "b@sha256:2");
        assert_eq!(image("a:1", inspect(&[])).digest, "sha256:1");
    }
}
