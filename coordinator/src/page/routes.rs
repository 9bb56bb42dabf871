//! What a page's server answers.

use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use common::net::Authority;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::assets::{ASSETS, ENTER};
use super::gate::{Asked, Gate, HEADERS, Verdict};
use super::history::{Happened, Stored};
use super::predicted::Predicted;
use super::prometheus;
use super::source::{Feed, Snapshot};
use crate::inbox::LauncherEvent;

/// The largest body of a request.
const BODY: usize = 4096;

/// How long a token that the page makes admits workers.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What a trusted reader may do with the run.
pub struct Actions {
    pub events: mpsc::Sender<LauncherEvent>,
    pub authority: Arc<Authority>,
    /// Where workers join.
    pub address: String,
}

/// All that is served.
pub(super) struct Site {
    pub feeds: Vec<Feed>,
    pub gate: Gate,
    pub actions: Option<Actions>,
    /// A place for each reader that is told of changes as they come.
    pub streams: Arc<Semaphore>,
}

/// Whether the reader may act.
#[derive(Clone, Copy)]
struct Trusted(bool);

/// The place among the requests that a connection has, until its answer turns out to be one
/// that does not end by itself.
#[derive(Clone)]
pub(super) struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Place {
    pub(super) fn new(place: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(Some(place))))
    }

    fn give_up(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// The routes of a site.
pub(super) fn router(site: Arc<Site>) -> Router {
    let mut router = Router::new()
        .route("/runs.json", get(runs))
        .route("/status.json", get(status))
        .route("/curve.json", get(curve))
        .route("/facts.json", get(facts))
        .route("/picture.png", get(picture))
        .route("/config.toml", get(config))
        .route("/metrics", get(metrics))
        .route("/events", get(events))
        .route("/enter", post(enter))
        .route("/stop", post(stop))
        .route("/leave", post(leave))
        .route("/token", post(token));
    for asset in &ASSETS {
        router = router.route(asset.path, get(async || ([(header::CONTENT_TYPE, asset.kind)], asset.bytes)));
    }
    router
        .fallback(async || (StatusCode::NOT_FOUND, "there is no such page\n"))
        .layer(from_fn(compress))
        .layer(from_fn_with_state(Arc::clone(&site), guard))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(site)
}

/// Has the gate judge each request before anything of it is used.
async fn guard(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let verdict = {
        let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        let enters = request.uri().path() == "/enter";
        site.gate.judge(Asked {
            // To enter is to show the token.
            acts: !reads && !enters,
            // A request for a whole URL, as to a proxy, is held against its host.
            host: request.uri().host().or_else(|| text(header::HOST)),
            origin: text(header::ORIGIN),
            fetch_site: text(HeaderName::from_static("sec-fetch-site")),
            cookie: text(header::COOKIE),
            authorization: text(header::AUTHORIZATION),
        })
    };
    let given = query(request.uri(), "token").map(str::to_owned);
    let open = request.uri().path() == "/enter" || request.uri().path() == "/page.css";
    let mut response = match (verdict, given) {
        (Verdict::Refuse(reason), _) => refuse(StatusCode::FORBIDDEN, reason),
        (_, Some(given)) if request.method() == Method::GET => admit(&site.gate, &given),
        (Verdict::AskForToken, _) if !open && request.uri().path() == "/" => ask(),
        (Verdict::AskForToken, _) if !open => {
            refuse(StatusCode::UNAUTHORIZED, "the token is missing: it is in the address that the coordinator printed")
        }
        (verdict, _) => {
            request.extensions_mut().insert(Trusted(verdict == Verdict::Serve { trusted: true }));
            next.run(request).await
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Compresses what is read as text, for readers that accept it: half of the bytes is left.
/// Pictures are compressed as they are, and events are sent as they come.
async fn compress(request: Request, next: Next) -> Response {
    let accepted = request.method() == Method::GET && accepts_gzip(request.headers());
    let response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let text = kind == "application/json" || (kind.starts_with("text/") && kind != "text/event-stream");
    if !accepted || !text || response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // The answers are whole in memory, and so is what is written.
    let whole = to_bytes(body, usize::MAX).await.unwrap_or_else(|e| unreachable!("an answer is plain bytes: {e}"));
    let compressed = encoder.write_all(&whole).and_then(|()| encoder.finish());
    let compressed = compressed.unwrap_or_else(|e| unreachable!("memory takes all bytes: {e}"));
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Response::from_parts(parts, Body::from(compressed))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|coding| coding.trim() == "gzip")
}

/// An answer that says why there is no other.
struct Refusal(Box<Response>);

impl From<Response> for Refusal {
    fn from(answer: Response) -> Self {
        Self(Box::new(answer))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        *self.0
    }
}

fn refuse(code: StatusCode, reason: &str) -> Response {
    (code, format!("{reason}\n")).into_response()
}

/// Has the browser keep the token, and leaves it out of the address.
fn admit(gate: &Gate, given: &str) -> Response {
    if !gate.is_token(given) {
        return refuse(StatusCode::FORBIDDEN, "the token is wrong: take the address that the coordinator printed last");
    }
    let headers = [(header::SET_COOKIE, gate.set_cookie()), (header::LOCATION, "/".to_owned())];
    (StatusCode::SEE_OTHER, headers).into_response()
}

fn ask() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], ENTER).into_response()
}

async fn enter(State(site): State<Arc<Site>>, body: Bytes) -> Response {
    let given = std::str::from_utf8(&body).ok().and_then(|text| text.trim().strip_prefix("token=")).unwrap_or_default();
    admit(&site.gate, given.trim_matches('+'))
}

/// A parameter of the address.
fn query<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The run that a request asks for by `?run=`: the first, if it names none.
fn feed<'a>(site: &'a Site, uri: &Uri) -> Result<&'a Feed, Refusal> {
    let number = query(uri, "run").map_or(Ok(0), str::parse::<usize>);
    let feed = number.ok().and_then(|number| site.feeds.get(number));
    feed.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "there is no such run").into())
}

fn snapshot(site: &Site, uri: &Uri) -> Result<Arc<Snapshot>, Refusal> {
    feed(site, uri).map(|feed| Arc::clone(&feed.snapshot.borrow()))
}

fn document(value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).unwrap_or_else(|e| unreachable!("what is shown is plain data: {e}"));
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn runs(State(site): State<Arc<Site>>, Extension(Trusted(trusted)): Extension<Trusted>) -> Response {
    let runs = site.feeds.iter().enumerate().map(|(id, feed)| {
        let snapshot = feed.snapshot.borrow();
        let status = &snapshot.status;
        json!({"id": id, "name": status.name, "directory": status.directory, "state": status.state})
    });
    let runs: Vec<_> = runs.collect();
    document(&json!({"runs": runs, "live": site.actions.is_some(), "may_act": trusted && site.actions.is_some()}))
}

async fn status(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    Ok(document(&snapshot(&site, &uri)?.status))
}

async fn curve(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    Ok(document(&snapshot(&site, &uri)?.history.curve.columns(0)))
}

async fn config(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    let text = feed(&site, &uri)?.config_toml.clone();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

async fn facts(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Facts<'a> {
        facts: u64,
        evaluations: serde_json::Value,
        events: &'a std::collections::VecDeque<Happened>,
        checkpoints: &'a std::collections::VecDeque<Stored>,
        skipped: &'a std::collections::VecDeque<common::run_dir::SkippedSample>,
        predictions: Option<&'a Predicted>,
    }
    let snapshot = snapshot(&site, &uri)?;
    let history = &snapshot.history;
    let column = |of: fn(&common::metrics::Evaluation) -> f64| history.evaluations.iter().map(of).collect::<Vec<f64>>();
    let steps: Vec<u64> = history.evaluations.iter().map(|e| e.step).collect();
    // serde_json writes null for what is not finite.
    let evaluations = json!({"step": steps, "loss": column(|e| e.loss), "top1": column(|e| e.top1), "top5": column(|e| e.top5)});
    let (events, checkpoints, skipped) = (&history.events, &history.checkpoints, &history.skipped);
    let predictions = history.predicted.as_deref();
    Ok(document(&Facts { facts: history.facts, evaluations, events, checkpoints, skipped, predictions }))
}

/// A picture that `/facts.json` names.
async fn picture(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    let snapshot = snapshot(&site, &uri)?;
    let png = snapshot.history.predicted.as_ref().zip(query(&uri, "picture")).and_then(|(predicted, name)| predicted.png(name));
    let Some(png) = png else { return Err(refuse(StatusCode::NOT_FOUND, "there is no such picture, or no longer").into()) };
    Ok(([(header::CONTENT_TYPE, "image/png")], png).into_response())
}

async fn metrics(State(site): State<Arc<Site>>, uri: Uri, headers: HeaderMap) -> Result<Response, Refusal> {
    let text = prometheus::metrics(&snapshot(&site, &uri)?.status);
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if prometheus::wants_plain(accept) {
        return Ok(([(header::CONTENT_TYPE, prometheus::PLAIN_CONTENT_TYPE)], prometheus::plain(&text)).into_response());
    }
    Ok(([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text).into_response())
}

/// Server-sent events: an update at once, and one with each change.
async fn events(State(site): State<Arc<Site>>, Extension(among_requests): Extension<Place>, uri: Uri) -> Result<Response, Refusal> {
    let feed = feed(&site, &uri)?;
    let Ok(place) = Arc::clone(&site.streams).try_acquire_owned() else {
        let (busy, later) = ("too many readers follow this run: ask for /status.json\n", [(header::RETRY_AFTER, "10")]);
        return Err((StatusCode::SERVICE_UNAVAILABLE, later, busy).into_response().into());
    };
    among_requests.give_up();
    let receiver = feed.updates.subscribe();
    let first = feed.snapshot.borrow().first_update();
    let updates = stream::unfold((Some(first), receiver, place), async |(first, mut receiver, place)| {
        let text = match first {
            Some(first) => first,
            None => {
                receiver.changed().await.ok()?;
                Arc::clone(&receiver.borrow_and_update())
            }
        };
        Some((Ok::<_, Infallible>(Event::default().data(text)), (None, receiver, place)))
    });
    Ok(Sse::new(updates).into_response())
}

fn actions(site: &Site) -> Result<&Actions, Refusal> {
    site.actions.as_ref().ok_or_else(|| refuse(StatusCode::CONFLICT, "this process does not run the run").into())
}

fn told(sent: Result<(), mpsc::error::TrySendError<LauncherEvent>>, said: &str) -> Result<Response, Refusal> {
    match sent {
        Ok(()) => Ok(document(&json!({"said": said}))),
        Err(_) => Err(refuse(StatusCode::CONFLICT, "the run is over, or busy: try again").into()),
    }
}

async fn stop(State(site): State<Arc<Site>>) -> Result<Response, Refusal> {
    let sent = actions(&site)?.events.try_send(LauncherEvent::StopWithCheckpoint);
    told(sent, "the run stops after the step in flight, with a checkpoint")
}

/// The worker that is to leave.
#[derive(Deserialize)]
struct Leaver {
    worker: String,
}

async fn leave(State(site): State<Arc<Site>>, body: Bytes) -> Result<Response, Refusal> {
    let actions = actions(&site)?;
    let Ok(Leaver { worker }) = serde_json::from_slice(&body) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "name the worker: {\"worker\": \"worker-1\"}").into());
    };
    let known = site.feeds.iter().any(|feed| feed.snapshot.borrow().status.workers.iter().any(|w| w.name == worker));
    if !known {
        return Err(refuse(StatusCode::NOT_FOUND, "no worker of this name is in the ring").into());
    }
    let said = format!("{worker} leaves after the step in flight");
    told(actions.events.try_send(LauncherEvent::Leave { name: worker }), &said)
}

async fn token(State(site): State<Arc<Site>>) -> Result<Response, Refusal> {
    let actions = actions(&site)?;
    let (authority, address) = (Arc::clone(&actions.authority), actions.address.clone());
    // The tokens are in files.
    let made = tokio::task::spawn_blocking(move || authority.tokens().create(LIFETIME, SystemTime::now())).await;
    let failed = |e: String| Refusal::from(refuse(StatusCode::INTERNAL_SERVER_ERROR, &e));
    let token = made.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    tracing::info!("a reader of the page made a token that admits workers for a day");
    let join = format!("worker join {address} --token {token}");
    Ok(document(&json!({"said": "this line admits workers for 24 hours", "join": join})))
}
