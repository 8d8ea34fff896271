//! A stand-in for the Docker daemon, for machines without one: it speaks the Engine API's calls that modelmeter makes
//! on a Unix socket, records each, and runs a container's command as a plain process of this machine.
//!
//! It isolates nothing: the model's mount is undone by rewriting the arguments, and ports must be the same inside and
//! outside. Source: the Docker Engine API, v1.43.

use crate::{Child, eventually};
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use futures::stream;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{net::UnixListener, task::JoinHandle, time::sleep};

/// Between looks at a process.
const POLL: Duration = Duration::from_millis(10);
/// The longest that a process may take to end after SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method and path.
    pub what: String,
    /// The query's parameters.
    pub query: BTreeMap<String, String>,
    /// The body, if it was JSON.
    pub body: Value,
}

/// An image of the stand-in: a program that gets the container's command.
#[derive(Clone, Debug)]
pub struct Image {
    /// The program of this machine.
    pub program: PathBuf,
    /// What goes before the command.
    pub args: Vec<String>,
}

/// A container as the stand-in keeps it.
struct Container {
    body: Value,
    process: Option<Child>,
    log: PathBuf,
}

#[derive(Default)]
struct Daemon {
    folder: PathBuf,
    calls: Vec<Call>,
    /// By name: what is here, and what can be pulled.
    images: BTreeMap<String, Image>,
    registry: BTreeMap<String, Image>,
    containers: BTreeMap<String, Container>,
    created: u32,
    /// What it takes to start one.
    start_takes: Duration,
}

type Shared = Arc<Mutex<Daemon>>;

/// A running stand-in. Dropped, it ends with all that it runs.
pub struct Docker {
    socket: PathBuf,
    daemon: Shared,
    server: JoinHandle<std::io::Result<()>>,
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Docker {
    /// Starts one with its socket and logs in a folder.
    pub fn start(folder: &std::path::Path) -> Result<Self> {
        let socket = folder.join("docker.sock");
        let daemon = Arc::new(Mutex::new(Daemon { folder: folder.to_owned(), ..Daemon::default() }));
        let listener = UnixListener::bind(&socket)?;
        let routes = Router::new()
            .route("/_ping", get(|| async { "OK" }))
            .route("/version", get(|| async { Json(json!({"Version": "stand-in", "ApiVersion": "1.43"})) }))
            .route("/images/create", post(pull))
            .route("/images/{*name}", get(inspect_image))
            .route("/containers/json", get(list))
            .route("/containers/create", post(create))
            .route("/containers/{id}/start", post(start))
            .route("/containers/{id}/json", get(inspect))
            .route("/containers/{id}/logs", get(logs))
            .route("/containers/{id}/wait", post(wait))
            .route("/containers/{id}/stop", post(stop))
            .route("/containers/{id}", delete(remove))
            .layer(middleware::from_fn_with_state(daemon.clone(), record))
            .with_state(daemon.clone());
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(Self { socket, daemon, server })
    }

    /// As `DOCKER_HOST` names it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Puts an image here.
    pub fn add(&self, name: &str, program: impl Into<PathBuf>, args: &[&str]) {
        lock(&self.daemon).images.insert(name.into(), image(program, args));
    }

    /// Puts an image where it can be pulled from.
    pub fn publish(&self, name: &str, program: impl Into<PathBuf>, args: &[&str]) {
        lock(&self.daemon).registry.insert(name.into(), image(program, args));
    }

    /// Makes every start take so long from now on.
    pub fn slow_down_starts(&self, by: Duration) {
        lock(&self.daemon).start_takes = by;
    }

    /// A container that somebody else left running, with these labels; gives its id.
    pub fn leave(&self, labels: Value) -> String {
        let body = json!({"Labels": labels, "Image": "left"});
        lock(&self.daemon).create(body)
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.daemon).calls.clone()
    }

    /// The ids of the containers that are here, running or not.
    pub fn containers(&self) -> Vec<String> {
        lock(&self.daemon).containers.keys().cloned().collect()
    }

    /// The process of a container that runs.
    pub fn pid(&self, id: &str) -> Option<u32> {
        lock(&self.daemon).containers.get(id)?.process.as_ref().map(Child::id)
    }
}

fn image(program: impl Into<PathBuf>, args: &[&str]) -> Image {
    Image { program: program.into(), args: args.iter().map(|&arg| arg.to_owned()).collect() }
}

fn lock(daemon: &Shared) -> MutexGuard<'_, Daemon> {
    daemon.lock().expect("no code panics while it holds the daemon")
}

/// What the daemon answers where it refuses.
type Answer<T> = Result<T, (StatusCode, Json<Value>)>;

fn refuse(status: StatusCode, message: impl ToString) -> (StatusCode, Json<Value>) {
    (status, Json(json!({"message": message.to_string()})))
}

fn no_such(what: &str, name: &str) -> (StatusCode, Json<Value>) {
    refuse(StatusCode::NOT_FOUND, format!("No such {what}: {name}"))
}

fn failed(error: impl std::fmt::Display) -> (StatusCode, Json<Value>) {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}

async fn record(State(daemon): State<Shared>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let query = Query::<BTreeMap<String, String>>::try_from_uri(&parts.uri).map(|query| query.0).unwrap_or_default();
    let what = format!("{} {}", parts.method, parts.uri.path());
    lock(&daemon).calls.push(Call { what, query, body: serde_json::from_slice(&bytes).unwrap_or_default() });
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

async fn pull(State(daemon): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Answer<Response> {
    let name = query.get("fromImage").cloned().unwrap_or_default();
    let mut daemon = lock(&daemon);
    let lines = match daemon.registry.get(&name).cloned() {
        Some(image) => {
            daemon.images.insert(name, image);
            vec![json!({"status": "Pulling from library", "id": "1"}), json!({"status": "Downloaded newer image"})]
        }
        // As a registry that is reached and has no such tag.
        None if name.ends_with(":gone") => {
            let why = "manifest unknown";
            vec![json!({"status": "Pulling"}), json!({"errorDetail": {"message": why}, "error": why})]
        }
        None => return Err(refuse(StatusCode::NOT_FOUND, format!("pull access denied for {name}"))),
    };
    let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    Ok(text.into_response())
}

async fn inspect_image(State(daemon): State<Shared>, Path(name): Path<String>) -> Answer<Json<Value>> {
    let name = name.strip_suffix("/json").unwrap_or(&name);
    match lock(&daemon).images.get(name) {
        Some(_) => Ok(Json(json!({"Id": id_of(name), "RepoDigests": [digest_of(name)]}))),
        None => Err(no_such("image", name)),
    }
}

/// The id that the stand-in gives an image.
pub fn id_of(name: &str) -> String {
    format!("sha256:id-of-{name}")
}

/// The digest that the stand-in's registry gives an image.
pub fn digest_of(name: &str) -> String {
    format!("{}@sha256:digest", name.rsplit_once(':').map_or(name, |(repository, _)| repository))
}

async fn list(State(daemon): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let filters: Value = query.get("filters").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let label = filters["label"][0].as_str().unwrap_or_default().to_owned();
    let daemon = lock(&daemon);
    let with_label = daemon.containers.iter().filter(|(_, it)| !it.body["Labels"][&label].is_null());
    Json(with_label.map(|(id, it)| json!({"Id": id, "Labels": it.body["Labels"]})).collect())
}

async fn create(State(daemon): State<Shared>, Json(body): Json<Value>) -> Answer<(StatusCode, Json<Value>)> {
    let mut daemon = lock(&daemon);
    let image = body["Image"].as_str().unwrap_or_default();
    if !daemon.images.keys().any(|name| id_of(name) == image) {
        return Err(no_such("image", image));
    }
    let id = daemon.create(body);
    Ok((StatusCode::CREATED, Json(json!({"Id": id, "Warnings": []}))))
}

impl Daemon {
    fn create(&mut self, body: Value) -> String {
        self.created += 1;
        let id = format!("container{}", self.created);
        let log = self.folder.join(format!("{id}.log"));
        self.containers.insert(id.clone(), Container { body, process: None, log });
        id
    }

    fn start(&mut self, id: &str) -> Result<()> {
        let container = self.containers.get_mut(id).context("no such container")?;
        let body = &container.body;
        let image = self.images.iter().find(|(name, _)| body["Image"] == id_of(name)).context("its image is gone")?.1;
        let mut command = Command::new(&image.program);
        command.args(&image.args).args(strings(&body["Cmd"]).iter().map(|arg| unmounted(arg, body)));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // As in a container: a home of its own.
        command.env("HOME", self.folder.join(id));
        command.envs(strings(&body["Env"]).iter().filter_map(|pair| pair.split_once('=')));
        for (inside, outside) in body["HostConfig"]["PortBindings"].as_object().into_iter().flatten() {
            let outside = outside[0]["HostPort"].as_str().unwrap_or_default();
            anyhow::ensure!(inside == &format!("{outside}/tcp"), "the stand-in cannot map port {outside} to {inside}");
        }
        for mount in body["HostConfig"]["Mounts"].as_array().into_iter().flatten() {
            let source = mount["Source"].as_str().unwrap_or_default();
            anyhow::ensure!(fs::exists(source)?, "bind source path does not exist: {source}");
        }
        container.process = Some(Child::spawn(id, command, &container.log)?);
        Ok(())
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Paths inside are paths here.
fn unmounted(arg: &str, body: &Value) -> String {
    let mounts = body["HostConfig"]["Mounts"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    mounts.fold(arg.to_owned(), |arg, mount| arg.replace(&text(&mount["Target"]), &text(&mount["Source"])))
}

async fn start(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<StatusCode> {
    let takes = lock(&daemon).start_takes;
    sleep(takes).await;
    lock(&daemon).start(&id).map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

/// How a container's process ended; none while it runs.
fn exit_code(daemon: &Shared, id: &str) -> Answer<Option<i32>> {
    let mut daemon = lock(daemon);
    let container = daemon.containers.get_mut(id).ok_or_else(|| no_such("container", id))?;
    let Some(process) = &mut container.process else { return Ok(Some(0)) };
    Ok(process.ended().map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())))
}

async fn ended(daemon: &Shared, id: &str) -> Answer<i32> {
    loop {
        match exit_code(daemon, id)? {
            Some(code) => return Ok(code),
            None => sleep(POLL).await,
        }
    }
}

async fn inspect(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let code = exit_code(&daemon, &id)?;
    let pid = lock(&daemon).containers[&id].process.as_ref().map_or(0, Child::id);
    Ok(Json(json!({"Id": id, "State": {
        "Running": code.is_none(),
        "Pid": if code.is_none() { pid } else { 0 },
        "ExitCode": code.unwrap_or_default(),
        "OOMKilled": false,
    }})))
}

/// Both streams as standard output, each piece after eight bytes that say its stream and length.
async fn logs(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Response> {
    let path = lock(&daemon).containers.get(&id).ok_or_else(|| no_such("container", &id))?.log.clone();
    let pieces = stream::unfold(0, move |sent| {
        let (daemon, id, path) = (daemon.clone(), id.clone(), path.clone());
        async move {
            loop {
                let has_ended = !matches!(exit_code(&daemon, &id), Ok(None));
                let text = fs::read(&path).unwrap_or_default();
                if text.len() > sent {
                    let piece = &text[sent..];
                    let mut frame = vec![1, 0, 0, 0];
                    frame.extend_from_slice(&(piece.len() as u32).to_be_bytes());
                    frame.extend_from_slice(piece);
                    return Some((Ok::<_, std::io::Error>(Bytes::from(frame)), text.len()));
                }
                if has_ended {
                    return None;
                }
                sleep(POLL).await;
            }
        }
    });
    Ok(Body::from_stream(pieces).into_response())
}

async fn wait(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Response> {
    // As the daemon does: the head of the answer at once, the body at the end.
    exit_code(&daemon, &id)?;
    let body = stream::once(async move {
        let code = ended(&daemon, &id).await.unwrap_or_default();
        Ok::<_, std::io::Error>(Bytes::from(json!({"StatusCode": code}).to_string()))
    });
    Ok(Body::from_stream(body).into_response())
}

fn signal(daemon: &Shared, id: &str, signal: i32) {
    if let Some(process) = lock(daemon).containers.get_mut(id).and_then(|it| it.process.as_mut()) {
        // One that has ended already is what is wanted.
        let _ = process.signal_group(signal);
    }
}

async fn stop(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Answer<StatusCode> {
    let grace = query.get("t").and_then(|t| t.parse().ok()).unwrap_or(10);
    signal(&daemon, &id, libc::SIGTERM);
    if tokio::time::timeout(Duration::from_secs(grace), ended(&daemon, &id)).await.is_err() {
        signal(&daemon, &id, libc::SIGKILL);
    }
    let death = eventually("a killed container ends", DEATH, || async { exit_code(&daemon, &id).ok()? });
    death.await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<StatusCode> {
    // Dropped, its process is killed.
    match lock(&daemon).containers.remove(&id) {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(no_such("container", &id)),
    }
}
