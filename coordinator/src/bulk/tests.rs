#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::digest::Digest;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::config::Config;
use common::dataset::{DatasetError, DatasetInfo, Sample, SampleFormat, SampleSource};
use common::metrics::{MAX_PICTURE_BYTES, RunPicture, Shown};
use common::net::{Alpn, Authority, COORDINATOR, Endpoint, Role};
use common::predictions::{Guess, PredictedPicture, Predictions};
use common::run_dir::{CHECKPOINT_FILES, CheckpointFiles, CheckpointMeta, InitialWeights};
use common::wire::messages::{FileSize, Member};
use quinn::Connection;
use safetensors::tensor::{Dtype, TensorView};
use tokio::sync::mpsc;

use super::budget::Budget;
use super::*;
use crate::admissions::Admissions;
use crate::inbox::{Inbox, News};
use crate::limits::Limits;
use crate::record_writer::ToShow;

const MIB: usize = 1 << 20;

/// A PNG file of one grey pixel.
const ONE_PIXEL: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\x0aIDAT\x78\x9c\x63\x68\0\0\0\x82\0\x81\x77\xcd\x72\xb6\0\0\0\0IEND\xae\x42\x60\x82";

/// Samples of one size; counts the bytes given out that were not dropped yet.
struct Large {
    info: DatasetInfo,
    bytes: usize,
    held: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
    }
}

impl SampleSource for Large {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, _split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let sample = |&id: &u32| {
            if id >= self.info.train {
                return Err(DatasetError::NoSuchSample { id, len: self.info.train });
            }
            let held = self.held.fetch_add(self.bytes, Ordering::SeqCst) + self.bytes;
            self.most.fetch_max(held, Ordering::SeqCst);
            let bytes = Bytes::from_owner(Counted(vec![id as u8; self.bytes], Arc::clone(&self.held)));
            Ok(Sample { id, label: id % 2, bytes })
        };
        ids.iter().map(sample).collect()
    }

    fn size_hint(&self, _split: Split, _id: u32) -> u64 {
        self.bytes as u64
    }

    fn name(&self, _split: Split, id: u32) -> String {
        format!("sample {id}")
    }
}

const CONFIG: &str = "name = \"p\"\n[model]\nkind = \"softmax\"\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 1\n";

struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    service: Arc<BulkService>,
    address: SocketAddr,
    committed: Arc<AtomicU64>,
    held: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<String>>>,
    pictures: Arc<Mutex<Vec<ToShow>>>,
    news: mpsc::Receiver<(Instant, News)>,
    endpoints: Vec<Endpoint>,
}

impl World {
    fn new(sample_bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("keys")).unwrap();
        let config = Config::parse(CONFIG, "test", &[]).unwrap();
        let (held, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let info = DatasetInfo {
            format: SampleFormat::Features { count: 2 },
            classes: vec!["a".to_owned(), "b".to_owned()],
            train: 10_000,
            val: 10,
            fingerprint: Digest::of(&[]),
        };
        let limits = Limits::new(&config, &info, 10_000);
        let source = Arc::new(Large { info, bytes: sample_bytes, held: Arc::clone(&held), most: Arc::clone(&most) });
        let admissions = Arc::new(Admissions::new(authority.tokens().clone(), &[]));
        admissions.set_members(&[Member { name: "worker-1".to_owned(), addr: ([127, 0, 0, 1], 1).into(), others: Vec::new() }]);
        let committed = Arc::new(AtomicU64::new(450));
        let (send, news) = mpsc::channel(100);
        let files = CheckpointFiles::new(dir.path().join("checkpoints"));
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let ear = Arc::clone(&heard);
        let pictures = Arc::<Mutex<Vec<ToShow>>>::default();
        let album = Arc::clone(&pictures);
        let service = BulkService::new(&config, source, files, Inbox(send), admissions, limits, Arc::clone(&committed))
            .beginning_with(Some(weights(dir.path())))
            .reporting_to(Arc::new(move |name| ear.lock().unwrap().push(name.to_owned())))
            .showing_to(Arc::new(move |picture| {
                album.lock().unwrap().push(picture);
                album.lock().unwrap().len() < 2
            }));
        let service = Arc::new(service);
        let endpoint =
            Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &authority.identity(COORDINATOR).unwrap(), Role::Coordinator).unwrap();
        let address = endpoint.local_addr().unwrap();
        let serving = Arc::clone(&service);
        tokio::spawn(async move {
            while let Some(peer) = endpoint.accept().await {
                tokio::spawn(serve(Arc::clone(&serving), peer));
            }
        });
        Self { dir, authority, service, address, committed, held, most, heard, pictures, news, endpoints: Vec::new() }
    }

    async fn connect(&mut self, name: &str) -> Connection {
        let identity = self.authority.identity(name).unwrap();
        let endpoint = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &identity, Role::Worker).unwrap();
        let connection = endpoint.connect(self.address, COORDINATOR, Alpn::Bulk).await.unwrap();
        self.endpoints.push(endpoint);
        connection
    }
}

/// Weights to begin with, longer than what is sent at once.
fn weights(folder: &Path) -> InitialWeights {
    let path = folder.join("initial-weights");
    let bytes: Vec<u8> = (0..2 * MIB + 5).map(|at| (at % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    InitialWeights { path, bytes: bytes.len() as u64, blake3: Digest::of(&bytes), origin: "weights.pth".into() }
}

/// Sends a request, and returns the stream with the unread answer.
async fn ask(connection: &Connection, request: &BulkRequest, content: &[Bytes]) -> RecvStream {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    write_message(&mut send, request).await.unwrap();
    for bytes in content {
        // A coordinator that refuses the request stops reading.
        let _ = send.write_chunk(bytes.clone()).await;
    }
    let _ = send.finish();
    recv
}

async fn reply(recv: &mut RecvStream) -> BulkReply {
    read_message::<BulkReply>(recv, 4 << 20).await.unwrap().unwrap()
}

/// Reads all groups of an answer: the samples' first bytes and labels.
async fn read_samples(recv: &mut RecvStream, n: usize) -> Vec<(u8, u32)> {
    let mut samples = Vec::new();
    while samples.len() < n {
        let BulkReply::Samples { labels, lengths } = reply(recv).await else { panic!("no samples") };
        for (label, length) in labels.into_iter().zip(lengths) {
            let mut bytes = vec![0; length as usize];
            recv.read_exact(&mut bytes).await.unwrap();
            samples.push((bytes[0], label));
        }
    }
    samples
}

fn samples_of(ids: impl IntoIterator<Item = u32>) -> BulkRequest {
    BulkRequest::Samples { val: false, ids: ids.into_iter().collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_nobody_reads_hold_little_and_not_for_long() {
    let mut world = World::new(MIB);
    // 4 GB each, from four peers with all the streams that they may have.
    let mut unread = Vec::new();
    for peer in 2..6 {
        let connection = world.connect(&format!("worker-{peer}")).await;
        for _ in 0..16 {
            unread.push(ask(&connection, &samples_of(0..MAX_SAMPLES as u32), &[]).await);
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (held, most) = (world.held.load(Ordering::SeqCst), world.most.load(Ordering::SeqCst));
    assert!(held > 16 * MIB, "{held} bytes are held: this tests nothing");
    assert!(most as u64 <= budget::TOTAL, "{most} bytes were held at once");
    // A peer that reads is served, at the latest when the others have run out of time.
    let start = Instant::now();
    let connection = world.connect("worker-1").await;
    let mut recv = ask(&connection, &samples_of([7, 3, 3]), &[]).await;
    assert_eq!(read_samples(&mut recv, 3).await, [(7, 1), (3, 1), (3, 1)]);
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    // All requests end, and give back all of their memory.
    for recv in &mut unread {
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(20), recv.read_chunk(MIB, true)).await.unwrap() {}
    }
    drop((unread, connection));
    world.endpoints.clear();
    for _ in 0..500 {
        if world.service.budget.free() == budget::TOTAL && world.held.load(Ordering::SeqCst) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} free, {} held", world.service.budget.free(), world.held.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_is_answered_in_groups_and_an_error_ends_it() {
    let mut world = World::new(300 << 10);
    let connection = world.connect("worker-1").await;
    let ids: Vec<u32> = (0..200).rev().collect();
    let mut recv = ask(&connection, &samples_of(ids.clone()), &[]).await;
    let expected: Vec<(u8, u32)> = ids.iter().map(|&id| (id as u8, id % 2)).collect();
    assert_eq!(read_samples(&mut recv, 200).await, expected);
    assert!(recv.read_chunk(1, true).await.unwrap().is_none(), "nothing follows");
    let most = world.most.load(Ordering::SeqCst);
    assert!(most <= 8 * MIB, "{most} bytes at once for one request");

    let mut recv = ask(&connection, &samples_of((0..10).chain([u32::MAX])), &[]).await;
    assert_eq!(read_samples(&mut recv, 6).await.len(), 6);
    assert!(matches!(reply(&mut recv).await, BulkReply::Failed { reason } if reason.contains("does not exist")));
    assert!(connection.close_reason().is_none());
}

#[test]
fn groups_hold_one_sample_at_least_and_no_more_than_fit() {
    let ids: Vec<u32> = (0..10).collect();
    let (group, bytes) = next_group(&ids, |_| GROUP / 4);
    assert_eq!((group, bytes), (&ids[..4], GROUP));
    for huge in [GROUP + 1, u64::MAX] {
        assert_eq!(next_group(&ids, |_| huge), (&ids[..1], huge));
    }
    assert_eq!(next_group(&ids, |_| 0).0.len(), 10);
    assert_eq!(next_group(&[], |_| 1), (&[][..], 0));
}

#[tokio::test]
async fn a_peer_waits_for_its_own_requests_and_not_others_for_it() {
    let budget = Budget::default();
    let (greedy, modest) = (budget::Share::default(), budget::Share::default());
    let held = budget.take(&greedy, u64::MAX).await;
    assert_eq!(budget.free(), budget::TOTAL - budget::SHARE);
    assert!(tokio::time::timeout(Duration::from_millis(50), budget.take(&greedy, 1)).await.is_err());
    let other = budget.take(&modest, 5000).await;
    drop((held, other));
    assert_eq!(budget.free(), budget::TOTAL);
    budget.take(&greedy, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_a_few_connections_and_the_oldest_gives_way() {
    let mut world = World::new(10);
    let mut connections = Vec::new();
    for _ in 0..6 {
        connections.push(world.connect("worker-1").await);
        let mut recv = ask(connections.last().unwrap(), &samples_of([1]), &[]).await;
        assert_eq!(read_samples(&mut recv, 1).await.len(), 1);
    }
    tokio::time::timeout(Duration::from_secs(5), async { _ = tokio::join!(connections[0].closed(), connections[1].closed()) })
        .await
        .unwrap();
    assert!(connections[2..].iter().all(|c| c.close_reason().is_none()));
}

/// The two files of a state of the test's model: 2 features, 2 classes.
fn state(step: u64, value: f32) -> [Bytes; 2] {
    let values = [value; 4].map(f32::to_le_bytes).concat();
    let part = |prefix: &str| {
        [("dense.weight", vec![2, 2]), ("dense.bias", vec![2])].map(|(name, shape)| {
            (format!("{prefix}{name}"), TensorView::new(Dtype::F32, shape.clone(), &values[..4 * shape.iter().product::<usize>()]).unwrap())
        })
    };
    let metadata = HashMap::from([("step".to_owned(), step.to_string())]);
    [safetensors::serialize(part(""), None).unwrap().into(), safetensors::serialize(part("momentum/"), Some(metadata)).unwrap().into()]
}

fn put(step: u64, files: &[Bytes; 2]) -> BulkRequest {
    let files = CHECKPOINT_FILES.iter().zip(files).map(|(name, b)| FileSize { name: (*name).to_owned(), bytes: b.len() as u64 }).collect();
    BulkRequest::PutCheckpoint { step, weights_blake3: Digest::of(&[]), files }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_state_that_the_run_can_have_is_stored() {
    let mut world = World::new(10);
    let connection = world.connect("worker-1").await;
    let files = world.service.checkpoints.clone();
    let mut store = files.begin(450).unwrap();
    for (name, bytes) in CHECKPOINT_FILES.into_iter().zip(state(450, 1.0)) {
        store.start_file(name).unwrap();
        store.write(&bytes).unwrap();
    }
    store.commit(&CheckpointMeta { config_identity: Digest::of(b"id"), weights_blake3: Digest::of(b"own") }).unwrap();

    let send = async |step, files: &[Bytes; 2]| {
        let mut recv = ask(&connection, &put(step, files), files).await;
        reply(&mut recv).await
    };
    let refused = async |step, files: &[Bytes; 2], word: &str| match send(step, files).await {
        BulkReply::Failed { reason } => assert!(reason.contains(word), "`{word}`: {reason}"),
        other => panic!("`{word}`: {other:?}"),
    };
    // Steps that are not committed yet; both requests wait at the same time.
    let ahead = [state(4999, 1.0), state(5000, 1.0)];
    tokio::join!(refused(4999, &ahead[0], "cannot be there"), refused(5000, &ahead[1], "cannot be there"));
    let [model, optimizer] = state(451, 2.0);
    refused(451, &[b"junk".as_slice().into(), optimizer.clone()], "header").await;
    refused(451, &[optimizer.clone(), optimizer.clone()], "layer").await;
    refused(451, &[model.clone(), state(450, 2.0)[1].clone()], "names the step 450").await;
    refused(451, &[model.slice(..model.len() - 4), optimizer.clone()], "its header speaks of").await;
    files.prune(1, None).unwrap();
    assert_eq!(files.newest_valid().unwrap().0.unwrap().step, 450);
    assert!(world.news.try_recv().is_err(), "nothing was stored");

    // The news of a step may come after its state.
    let committed = Arc::clone(&world.committed);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        committed.store(455, Ordering::Relaxed);
    });
    let late = [&state(455, 3.0), &[model, optimizer]];
    assert_eq!(send(455, late[0]).await, BulkReply::Stored);
    assert!(matches!(world.news.try_recv(), Ok((_, News::Stored { step: 455 }))));
    let left = std::fs::read_dir(world.dir.path().join("checkpoints")).unwrap().count();
    assert_eq!(left, 2, "nothing is left of what was refused");

    // The stored checkpoint comes back unchanged.
    let mut recv = ask(&connection, &BulkRequest::GetCheckpoint { step: 455 }, &[]).await;
    let BulkReply::Checkpoint { files } = reply(&mut recv).await else { panic!("no checkpoint") };
    for (size, expected) in files.iter().zip(late[0]) {
        let mut bytes = vec![0; size.bytes as usize];
        recv.read_exact(&mut bytes).await.unwrap();
        assert!(bytes == *expected, "{}", size.name);
    }
    let mut recv = ask(&connection, &BulkRequest::GetCheckpoint { step: 9 }, &[]).await;
    assert!(matches!(reply(&mut recv).await, BulkReply::Failed { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_to_begin_with_are_given_out_whole() {
    let mut world = World::new(10);
    let connection = world.connect("worker-2").await;
    let mut recv = ask(&connection, &BulkRequest::GetWeights, &[]).await;
    let BulkReply::Weights { bytes, blake3 } = reply(&mut recv).await else { panic!("no weights") };
    let mut content = vec![0; bytes as usize];
    recv.read_exact(&mut content).await.unwrap();
    assert_eq!((content.len(), Digest::of(&content)), (2 * MIB + 5, blake3));
    std::fs::remove_file(world.dir.path().join("initial-weights")).unwrap();
    let mut recv = ask(&connection, &BulkRequest::GetWeights, &[]).await;
    let BulkReply::Failed { reason } = reply(&mut recv).await else { panic!("weights that are gone") };
    assert!(reason.contains("initial-weights"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_slowly_is_heard_all_the_while_and_no_oftener() {
    let mut world = World::new(10);
    let connection = world.connect("worker-1").await;
    let files = state(450, 1.0);
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write_message(&mut send, &put(450, &files)).await.unwrap();
    let content = files.concat();
    let start = Instant::now();
    for piece in content.chunks(content.len().div_ceil(60)) {
        send.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    send.finish().unwrap();
    assert_eq!(reply(&mut recv).await, BulkReply::Stored);
    let took = start.elapsed().as_millis() as usize;
    let heard = world.heard.lock().unwrap().clone();
    assert!(heard.iter().all(|name| name == "worker-1"));
    assert!((4..=2 + took / 100).contains(&heard.len()), "{} times in {took} ms", heard.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_members_are_recorded_and_others_are_refused() {
    let mut world = World::new(1);
    let (member, stranger) = (world.connect("worker-1").await, world.connect("worker-2").await);
    let png = Bytes::from_static(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x07\0\0\0\x05");
    let put = |step, bytes: u64| BulkRequest::PutPicture { shown: Shown::Filters, step, bytes };
    let size = png.len() as u64;
    for (connection, request, content, word) in [
        (&stranger, put(5, size), png.clone(), "not in the run's ring"),
        (&member, put(10_001, size), png.clone(), "step 10001"),
        (&member, put(5, MAX_PICTURE_BYTES as u64 + 1), png.clone(), "at most"),
        (&member, put(5, 6), Bytes::from_static(b"GIF89a"), "no PNG"),
    ] {
        let BulkReply::Failed { reason } = reply(&mut ask(connection, &request, &[content]).await).await else { panic!("{word}") };
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(reply(&mut ask(&member, &put(5, size), std::slice::from_ref(&png)).await).await, BulkReply::Stored);
    let shown = ToShow::Picture(RunPicture { shown: Shown::Filters, step: 5, png: png.to_vec() });
    assert_eq!(*world.pictures.lock().unwrap(), [shown]);
    let full = reply(&mut ask(&member, &put(6, size), &[png]).await).await;
    assert!(matches!(&full, BulkReply::Failed { reason } if reason.contains("no more pictures")), "{full:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_of_members_are_recorded_and_what_is_no_picture_is_refused() {
    let mut world = World::new(1);
    let (member, stranger) = (world.connect("worker-1").await, world.connect("worker-2").await);
    let put = |step, label, png: &[u8]| {
        let guesses = vec![Guess { class: 1, probability: 0.5 }];
        Predictions { step, pictures: vec![PredictedPicture { label, guesses, png: png.to_vec() }] }
    };
    let many = Predictions { step: 5, pictures: vec![put(5, 1, ONE_PIXEL).pictures[0].clone(); 9] };
    for (connection, predictions, word) in [
        (&stranger, put(5, 1, ONE_PIXEL), "not in the run's ring"),
        (&member, put(10_001, 1, ONE_PIXEL), "step 10001"),
        (&member, put(5, 2, ONE_PIXEL), "class 2 of 2"),
        (&member, put(5, 1, b"<svg/>"), "no PNG file"),
        (&member, put(5, 1, &vec![0; 200_000]), "at most 100000 bytes"),
        (&member, many, "at most 8 pictures"),
    ] {
        let BulkReply::Failed { reason } = reply(&mut ask(connection, &BulkRequest::PutPredictions(predictions), &[]).await).await else {
            panic!("{word}")
        };
        assert!(reason.contains(word), "{reason}");
    }
    assert!(world.pictures.lock().unwrap().is_empty());
    let good = put(5, 1, ONE_PIXEL);
    assert_eq!(reply(&mut ask(&member, &BulkRequest::PutPredictions(good.clone()), &[]).await).await, BulkReply::Stored);
    assert_eq!(*world.pictures.lock().unwrap(), [ToShow::Predictions(good)]);
    // A message of more bytes than a request may have ends its connection, before it is read.
    let (mut send, _recv) = member.open_bi().await.unwrap();
    write_message(&mut send, &BulkRequest::PutPredictions(put(5, 1, &vec![0; 2 << 20]))).await.unwrap_or_default();
    tokio::time::timeout(Duration::from_secs(20), member.closed()).await.unwrap();
}
