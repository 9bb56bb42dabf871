//! Requests to stores: which stores there are, what is repeated, and threads that wait.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::path::Path as FilePath;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::credentials;
use super::error::ObjectError;
use super::url::{Address, Scheme, is_loopback};

/// How long a failing request is repeated when something is opened: a wrong address is to
/// be told soon.
pub(super) const PATIENCE_AT_OPENING: Duration = Duration::from_secs(20);

/// The same once training depends on it: a store that is restarted ends no run.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// The first wait before a request is repeated, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The host of which a virtual machine gets its credentials, as messages have it.
const INSTANCE_METADATA: &str = "169.254.169.254";

/// A request that takes longer is told.
const SLOW: Duration = Duration::from_secs(10);

/// Requests under way at a time in this process.
const REQUESTS: usize = 64;

/// The size of the parts in which a file is sent.
const PART_BYTES: usize = 8 << 20;

/// Parts of one file that are sent at a time.
const PARTS_AT_ONCE: usize = 4;

/// The threads on which requests run.
static RUNTIME: LazyLock<std::io::Result<Runtime>> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).thread_name("objects").enable_all().build());

static UNDER_WAY: Semaphore = Semaphore::const_new(REQUESTS);

type Stores = BTreeMap<(String, Duration), Arc<dyn ObjectStore>>;

/// Stores that were used before, which keep their connections.
static STORES: Mutex<Stores> = Mutex::new(BTreeMap::new());

/// An address with the store that it lies in.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) url: String,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
}

impl Place {
    pub(super) fn of(url: &str, patience: Duration) -> Result<Self, ObjectError> {
        let address = Address::parse(url)?;
        let bad = |problem: String| ObjectError::Address { url: url.to_owned(), problem };
        // What a browser would ask for, and the plain names of all other stores.
        let path = match address.scheme {
            Scheme::Https | Scheme::Http => Path::from_url_path(&address.key),
            Scheme::S3 | Scheme::Gcs => Path::parse(&address.key),
        };
        let path = path.map_err(|e| bad(format!("cannot be the name of an object: {e}")))?;
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (address.root(), patience);
        let store = match stores.get(&name) {
            Some(store) => Arc::clone(store),
            None => Arc::clone(stores.entry(name).or_insert(connect(&address, patience).map_err(bad)?)),
        };
        Ok(Self { url: url.to_owned(), store, path })
    }

    pub(super) fn error(&self, action: &'static str, error: &Error) -> ObjectError {
        let (url, cause) = (self.url.clone(), one_line(error));
        match error {
            Error::NotFound { .. } => ObjectError::NotFound { url },
            Error::Precondition { .. } => ObjectError::Replaced { url },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ObjectError::Refused { url, cause },
            // Asked for as the last of all ways to get credentials.
            _ if cause.contains(INSTANCE_METADATA) => ObjectError::Refused { url, cause },
            _ => ObjectError::Failed { action, url, cause },
        }
    }

    /// Reads a range, or all, of an object that must still have this tag.
    pub(super) async fn fetch(&self, options: GetOptions) -> Result<(ObjectMeta, Bytes), ObjectError> {
        let _turn = UNDER_WAY.acquire().await;
        let began = Instant::now();
        loop {
            let outcome = async {
                let found = self.store.get_opts(&self.path, options.clone()).await?;
                Ok::<_, Error>((found.meta.clone(), found.bytes().await?))
            };
            match outcome.await {
                Ok(found) => return Ok(found),
                // Requests are repeated within the store; answers that break off are only
                // where the server tags what it sends.
                Err(Error::Generic { source, .. }) if is_broken_answer(&*source) && began.elapsed() < PATIENCE_AT_OPENING => {
                    tokio::time::sleep(FIRST_WAIT).await;
                }
                Err(e) => return Err(self.error("read", &e)),
            }
        }
    }
}

/// Whether a request failed after its answer had begun.
fn is_broken_answer(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<object_store::client::HttpError>() {
            return matches!(http.kind(), object_store::client::HttpErrorKind::Decode | object_store::client::HttpErrorKind::Interrupted);
        }
        cause = error.source();
    }
    false
}

/// The crate's errors quote answers of servers, which may be pages.
fn one_line(error: &Error) -> String {
    const MOST: usize = 400;
    let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn connect(address: &Address, patience: Duration) -> Result<Arc<dyn ObjectStore>, String> {
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: FIRST_WAIT, max_backoff: LONGEST_WAIT, base: 2.0 },
        max_retries: usize::MAX,
        retry_timeout: patience,
    };
    let unusable = |e: Error| format!("cannot be used: {}", one_line(&e));
    match address.scheme {
        Scheme::S3 => s3(&address.host, retry),
        Scheme::Gcs => {
            let store = GoogleCloudStorageBuilder::from_env().with_bucket_name(&address.host).with_retry(retry);
            Ok(Arc::new(store.build().map_err(unusable)?))
        }
        Scheme::Https | Scheme::Http => {
            let plain = (address.scheme == Scheme::Http).to_string();
            let store = HttpBuilder::new().with_url(address.root()).with_config(ClientConfigKey::AllowHttp, plain).with_retry(retry);
            Ok(Arc::new(store.build().map_err(unusable)?))
        }
    }
}

fn s3(bucket: &str, retry: RetryConfig) -> Result<Arc<dyn ObjectStore>, String> {
    let mut store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
    let endpoint = store.get_config_value(&AmazonS3ConfigKey::Endpoint);
    if let Some(host) = endpoint.as_deref().and_then(|endpoint| endpoint.strip_prefix("http://")) {
        let local = is_loopback(host.split('/').next().unwrap_or(host));
        if local {
            store = store.with_allow_http(true);
        } else if store.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).as_deref() != Some("true") {
            return Err("cannot be used: AWS_ENDPOINT_URL names a server without encryption (http://): name it with https://".to_owned());
        }
    }
    if let Some(profile) = credentials::profile().map_err(|problem| format!("cannot be used: {problem}"))? {
        store = store.with_access_key_id(profile.key_id).with_secret_access_key(profile.secret);
        if let Some(token) = profile.token {
            store = store.with_token(token);
        }
        if let (Some(region), true) = (profile.region, std::env::var_os("AWS_REGION").is_none()) {
            store = store.with_region(region);
        }
    }
    Ok(Arc::new(store.build().map_err(|e| format!("cannot be used: {}", one_line(&e)))?))
}

/// Starts work that nobody waits for.
pub(super) fn start(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = RUNTIME.as_ref() {
        runtime.spawn(work);
    }
}

/// Waits for a request on this thread, wherever that is.
pub(super) fn wait<T: Send + 'static>(
    what: &str,
    request: impl Future<Output = Result<T, ObjectError>> + Send + 'static,
) -> Result<T, ObjectError> {
    let failed = |cause: String| ObjectError::Failed { action: "read", url: what.to_owned(), cause };
    let runtime = RUNTIME.as_ref().map_err(|e| failed(format!("no thread could be started: {e}")))?;
    let (result, answer) = sync_channel(1);
    runtime.spawn(async move {
        // Nobody waits any longer only if this thread's process ends.
        let _ = result.send(request.await);
    });
    let began = Instant::now();
    loop {
        match answer.recv_timeout(SLOW) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("the store has not answered for {} s, and is asked again: `{what}`", began.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => return Err(failed("its request was given up".to_owned())),
        }
    }
}

/// What tells an object from another under the same address.
pub(super) fn tag(meta: &ObjectMeta) -> String {
    meta.e_tag.clone().unwrap_or_else(|| format!("{} {}", meta.last_modified.timestamp_micros(), meta.size))
}

/// The keys of all objects below an address that ends a name at a slash, such as
/// `train/a/1.jpg`, in their order.
///
/// # Errors
/// HTTP servers list nothing.
pub fn list(url: &str) -> Result<Vec<String>, ObjectError> {
    if matches!(Address::parse(url)?.scheme, Scheme::Https | Scheme::Http) {
        let problem = "is on a web server, which lists no files: name them, as in https://HOST/shards/{000..146}.tar".to_owned();
        return Err(ObjectError::Address { url: url.to_owned(), problem });
    }
    let place = Place::of(url, PATIENCE_AT_OPENING)?;
    wait(url, async move {
        let prefix = Some(&place.path).filter(|path| !path.as_ref().is_empty());
        let found: Vec<ObjectMeta> = place.store.list(prefix).try_collect().await.map_err(|e| place.error("list", &e))?;
        let below = format!("{}/", place.path);
        let key = |meta: &ObjectMeta| meta.location.as_ref().strip_prefix(below.trim_start_matches('/')).map(str::to_owned);
        let mut found: Vec<String> = found.iter().filter_map(key).collect();
        found.sort_unstable();
        Ok(found)
    })
}

/// A small object whole; none if there is none.
pub fn get(url: &str) -> Result<Option<Bytes>, ObjectError> {
    Ok(get_all(&[url.to_owned()])?.into_iter().flatten().next())
}

/// Small objects whole, in this order, many at a time.
pub fn get_all(urls: &[String]) -> Result<Vec<Option<Bytes>>, ObjectError> {
    let places: Vec<Place> = urls.iter().map(|url| Place::of(url, PATIENCE_AT_OPENING)).collect::<Result<_, _>>()?;
    wait(urls.first().map_or("", String::as_str), async move {
        let mut requests = JoinSet::new();
        for (n, place) in places.into_iter().enumerate() {
            requests.spawn(async move {
                match place.fetch(GetOptions::default()).await {
                    Ok((_, bytes)) => Ok((n, Some(bytes))),
                    Err(ObjectError::NotFound { .. }) => Ok((n, None)),
                    Err(e) => Err(e),
                }
            });
        }
        in_order(requests).await
    })
}

/// The results of requests, by their numbers; the others end with the first that fails.
pub(super) async fn in_order<T: 'static>(mut requests: JoinSet<Result<(usize, T), ObjectError>>) -> Result<Vec<T>, ObjectError> {
    let mut done: Vec<(usize, T)> = Vec::with_capacity(requests.len());
    while let Some(one) = requests.join_next().await {
        let failed = |e: JoinError| ObjectError::Failed { action: "read", url: "a store".to_owned(), cause: e.to_string() };
        done.push(one.map_err(failed)??);
    }
    done.sort_unstable_by_key(|(n, _)| *n);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

/// Copies an object of any size to a file. False, and no file, if there is none.
pub fn get_file(url: &str, path: &FilePath) -> Result<bool, ObjectError> {
    let place = Place::of(url, PATIENCE_AT_OPENING)?;
    let to = path.to_owned();
    wait(url, async move {
        let found = match place.store.get(&place.path).await {
            Err(Error::NotFound { .. }) => return Ok(false),
            other => other.map_err(|e| place.error("read", &e))?,
        };
        let cannot = |e: std::io::Error| ObjectError::Failed { action: "write", url: to.display().to_string(), cause: e.to_string() };
        let mut file = File::create(&to).map_err(cannot)?;
        let mut parts = found.into_stream();
        while let Some(part) = parts.try_next().await.map_err(|e| place.error("read", &e))? {
            file.write_all(&part).map_err(cannot)?;
        }
        file.sync_all().map_err(cannot)?;
        Ok(true)
    })
}

/// Writes a small object.
pub fn put(url: &str, bytes: Bytes) -> Result<(), ObjectError> {
    let place = Place::of(url, PATIENCE_AT_OPENING)?;
    wait(url, async move {
        let put = place.store.put(&place.path, PutPayload::from_bytes(bytes)).await;
        put.map(drop).map_err(|e| place.error("write", &e))
    })
}

/// Writes a file of any size. It exists whole or not at all.
pub fn put_file(url: &str, path: &FilePath) -> Result<(), ObjectError> {
    let place = Place::of(url, PATIENCE_AT_OPENING)?;
    let cannot = |e: std::io::Error| ObjectError::Failed { action: "copy", url: path.display().to_string(), cause: e.to_string() };
    let mut file = File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.len() <= PART_BYTES as u64 {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(cannot)?;
        return put(url, bytes.into());
    }
    let path = path.display().to_string();
    wait(url, async move {
        let failed = |e: Error| place.error("write", &e);
        let upload = place.store.put_multipart(&place.path).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut part = vec![0; PART_BYTES];
        loop {
            let read = file.read(&mut part);
            match read {
                Ok(0) => break,
                Ok(n) => {
                    let sent = upload.wait_for_capacity(PARTS_AT_ONCE).await;
                    sent.map_err(failed)?;
                    upload.write(&part[..n]);
                }
                Err(e) => {
                    // What was sent is given up; the error that matters is the file's.
                    let _ = upload.abort().await;
                    return Err(ObjectError::Failed { action: "copy", url: path, cause: e.to_string() });
                }
            }
        }
        upload.finish().await.map(drop).map_err(failed)
    })
}

/// Removes an object, if it is there.
pub fn remove(url: &str) -> Result<(), ObjectError> {
    let place = Place::of(url, PATIENCE_AT_OPENING)?;
    wait(url, async move {
        match place.store.delete(&place.path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(place.error("remove", &e)),
        }
    })
}
