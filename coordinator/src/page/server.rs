//! A page's server: a thread of the lowest priority with a runtime of its own, so that
//! readers have what training leaves over. Connections, requests and their times are
//! bounded; a connection serves one request.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Extension;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::gate::Gate;
use super::routes::{Actions, Place, Site, router};
use super::source::{Publisher, Source};

/// Requests at a time. Others wait in the system's queue, where they take no file of this
/// process.
pub(super) const REQUESTS: usize = 64;

/// Readers that are told of changes as they come; the rest ask.
pub(super) const STREAMS: usize = 64;

/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(3);

/// How long a request and its answer may take, and how long changes are told over one
/// connection; a browser then makes another.
const REQUEST: Duration = Duration::from_secs(15);
const STREAM: Duration = Duration::from_secs(600);

/// Bytes of a connection that wait to be read or written.
const BUFFER: usize = 16 << 10;

/// How long readers get at the end to hear of it.
const FAREWELL: Duration = Duration::from_millis(300);

/// How long the end of a record may take to be read.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The pause after a connection that could not be accepted: files may have run out.
const AGAIN: Duration = Duration::from_millis(200);

/// How much the server's thread yields to others (`nice`).
#[cfg(target_os = "linux")]
const YIELDS: i32 = 19;

/// What a server needs to start.
pub(super) struct Plan {
    pub listener: TcpListener,
    pub gate: Gate,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub actions: Option<Actions>,
}

/// A server that runs until this is dropped or finished.
pub struct Running {
    end: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts the server's thread.
    pub(super) fn start(plan: Plan, sources: Vec<Source>) -> std::io::Result<Self> {
        plan.listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).thread_name("page").build()?;
        let (end, ended) = watch::channel(());
        let thread = std::thread::Builder::new().name("page".to_owned()).spawn(move || {
            yield_to_others();
            if let Err(e) = runtime.block_on(serve(plan, sources, ended)) {
                tracing::warn!("the page is no longer served: {e}");
            }
            runtime.shutdown_background();
        })?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }

    /// Tells the readers how the run ended, and ends the server.
    pub async fn finish(mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It has its own limits of time.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

async fn serve(plan: Plan, sources: Vec<Source>, ended: watch::Receiver<()>) -> std::io::Result<()> {
    let Plan { listener, gate, tls, actions } = plan;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (feeds, mut publishers): (Vec<_>, Vec<Publisher>) = sources.into_iter().map(Source::publish).unzip();
    let streams = Arc::new(Semaphore::new(STREAMS));
    let site = Arc::new(Site { feeds, gate, actions, streams: Arc::clone(&streams) });
    let accepting = pin!(accept(listener, tls.map(TlsAcceptor::from), site));
    let last_look = async {
        // The sender is dropped.
        let _ = ended.clone().changed().await;
        tokio::time::sleep(LAST_LOOK).await;
    };
    let publishing = async {
        tokio::select! {
            _ = join_all(publishers.iter_mut().map(|publisher| publisher.run(ended.clone()))) => {}
            () = last_look => {}
        }
        if streams.available_permits() < STREAMS {
            tokio::time::sleep(FAREWELL).await;
        }
    };
    tokio::select! {
        () = publishing => {}
        () = accepting => {}
    }
    Ok(())
}

/// Accepts connections for as long as there are places.
async fn accept(listener: tokio::net::TcpListener, tls: Option<TlsAcceptor>, site: Arc<Site>) {
    let places = Arc::new(Semaphore::new(REQUESTS));
    let router = router(site);
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::debug!("a reader of the page could not be accepted: {e}");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let (router, tls, place) = (router.clone(), tls.clone(), Place::new(place));
        tokio::spawn(async move {
            let answered = converse(stream, tls, router.layer(Extension(place.clone())));
            bounded(answered, || place.is_given_up()).await;
        });
    }
}

/// Runs a conversation for as long as it may take.
async fn bounded(conversation: impl Future<Output = ()>, is_stream: impl Fn() -> bool) {
    let mut conversation = pin!(conversation);
    if tokio::time::timeout(REQUEST, &mut conversation).await.is_err() && is_stream() {
        let _ = tokio::time::timeout(STREAM, conversation).await;
    }
}

async fn converse(stream: TcpStream, tls: Option<TlsAcceptor>, router: axum::Router) {
    match tls {
        None => answer(stream, router).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => answer(stream, router).await,
            Err(e) => tracing::debug!("a reader of the page failed to speak TLS: {e}"),
        },
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, router: axum::Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false).max_buf_size(BUFFER).max_headers(64);
    if let Err(e) = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        tracing::debug!("a reader of the page: {e}");
    }
}

/// On Linux a thread has a priority of its own, and threads that it starts have the same.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::nice(YIELDS) {
        tracing::debug!("could not lower the priority of the page's thread: {e}");
    }
}

/// Takes the address, or a free port of the same host where it is taken.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).or_else(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => TcpListener::bind(SocketAddr::new(address.ip(), 0)),
        _ => Err(e),
    })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
