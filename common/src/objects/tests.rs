#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::blocks::{Blocks, Settings};
use super::url::{Address, Scheme, is_loopback};
use super::*;

/// A web server with one file, which can misbehave.
struct Server {
    url: String,
    content: Arc<Mutex<(Vec<u8>, String)>>,
    /// Bodies that it has sent.
    bodies: Arc<AtomicUsize>,
    /// Requests that it answers with 503, or breaks off in the middle.
    refuses: Arc<AtomicU32>,
    breaks_off: Arc<AtomicU32>,
}

impl Server {
    fn start(content: Vec<u8>, tag: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            url: format!("http://{}/a%20folder/file.tar", listener.local_addr().unwrap()),
            content: Arc::new(Mutex::new((content, tag.to_owned()))),
            bodies: Arc::default(),
            refuses: Arc::default(),
            breaks_off: Arc::default(),
        };
        let (content, bodies) = (Arc::clone(&server.content), Arc::clone(&server.bodies));
        let (refuses, breaks_off) = (Arc::clone(&server.refuses), Arc::clone(&server.breaks_off));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, bodies) = (Arc::clone(&content), Arc::clone(&bodies));
                let (refuses, breaks_off) = (Arc::clone(&refuses), Arc::clone(&breaks_off));
                std::thread::spawn(move || while answer(&stream, &content, &bodies, &refuses, &breaks_off).is_some() {});
            }
        });
        server
    }
}

fn once_less(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn answer(
    mut stream: &TcpStream,
    content: &Mutex<(Vec<u8>, String)>,
    bodies: &AtomicUsize,
    refuses: &AtomicU32,
    breaks_off: &AtomicU32,
) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next()?.ok()?;
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()));
    if once_less(refuses) {
        return stream.write_all(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n").ok();
    }
    if !request.contains("/a%20folder/file.tar ") {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").ok();
    }
    let (content, tag) = content.lock().unwrap().clone();
    if header("if-match:").is_some_and(|wanted| wanted != tag.to_lowercase()) {
        return stream.write_all(b"HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n").ok();
    }
    let (status, part, range) = match header("range: bytes=") {
        Some(range) => {
            let (from, to) = range.split_once('-')?;
            let (from, to) = (from.parse::<usize>().ok()?, to.parse::<usize>().ok()?);
            ("206 Partial Content", &content[from..=to], format!("content-range: bytes {from}-{to}/{}\r\n", content.len()))
        }
        None => ("200 OK", &content[..], String::new()),
    };
    let tag = if tag.is_empty() { tag } else { format!("etag: {tag}\r\n") };
    let head =
        format!("HTTP/1.1 {status}\r\n{tag}last-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n{range}content-length: {}\r\n\r\n", part.len());
    stream.write_all(head.as_bytes()).ok()?;
    if request.starts_with("HEAD") {
        return Some(());
    }
    bodies.fetch_add(1, Ordering::SeqCst);
    if once_less(breaks_off) {
        stream.write_all(&part[..part.len() / 2]).ok()?;
        return None;
    }
    stream.write_all(part).ok()
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * n / 7) as u8).collect()
}

/// Blocks of all tests of this process lie in one folder, which goes with the process.
fn keep_blocks_here() {
    static FOLDER: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    keep_blocks(FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path(), 1 << 30);
}

fn open_one(server: &Server) -> Object {
    open(std::slice::from_ref(&server.url)).unwrap().remove(0)
}

#[test]
fn ranges_are_read_once_and_then_from_this_machine() {
    keep_blocks_here();
    let content = content(100_000);
    let server = Server::start(content.clone(), "\"v1\"");
    let object = open_one(&server);
    assert_eq!(object.bytes(), 100_000);
    let ranges = [5..10, 0..0, 16_383..16_385, 70_000..100_000, 99_999..100_000];
    let check = |object: &Object| {
        let wanted: Vec<_> = ranges.iter().map(|range| (object, range.clone())).collect();
        for (range, found) in ranges.iter().zip(read(&wanted).unwrap()) {
            assert_eq!(found, content[range.start as usize..range.end as usize], "{range:?}");
        }
    };
    check(&object);
    let sent = server.bodies.load(Ordering::SeqCst);
    assert!(sent > 0);
    check(&object);
    // Another process, or a later one.
    check(&open_one(&server));
    assert_eq!(server.bodies.load(Ordering::SeqCst), sent, "all blocks are here");
    assert!(read(&[(&object, 99_999..100_001)]).unwrap_err().to_string().contains("100000"));
}

#[test]
fn a_damaged_block_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(folder.path().join("objects"), 1 << 30);
    let blocks = Blocks::open_in(settings.clone(), "s3://b/k", "t", 40_000).unwrap();
    let content = content(40_000);
    let mut found = vec![0; 40_000];
    assert_eq!(blocks.read(0, &mut found), [0..40_000]);
    blocks.write(0, &content);
    assert_eq!(blocks.read(0, &mut found), []);
    assert_eq!(found, content);
    let data = std::fs::read_dir(folder.path().join("objects")).unwrap().flatten().map(|e| e.path());
    let data = data.into_iter().find(|path| path.extension().is_some_and(|e| e == "blocks")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&data).unwrap(), b"?", 20_000).unwrap();
    assert_eq!(blocks.read(0, &mut found), [16_384..32_768]);
    // Another tag is another object.
    let other = Blocks::open_in(settings.clone(), "s3://b/k", "u", 40_000).unwrap();
    assert_eq!(other.read(0, &mut found), [0..40_000]);
}

#[test]
fn blocks_stay_within_their_bound_and_unused_objects_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(folder.path().join("objects"), 600_000);
    let open = |name: &str| Blocks::open_in(settings.clone(), name, "t", 400_000).unwrap();
    let content = content(400_000);
    let old = open("s3://b/old");
    old.write(0, &content);
    // In use: what does not fit beside it is not kept.
    let new = open("s3://b/new");
    let mut found = vec![0; 400_000];
    new.write(0, &content);
    assert_eq!(new.read(0, &mut found), [0..400_000]);
    assert_eq!(old.read(0, &mut found), []);
    drop(old);
    new.write(0, &content);
    assert_eq!(new.read(0, &mut found), []);
    assert_eq!(open("s3://b/old").read(0, &mut found), [0..400_000], "it was removed");
}

#[test]
fn an_object_that_is_replaced_is_an_error_and_not_a_mixture() {
    keep_blocks_here();
    for tag in ["\"v1\"", ""] {
        let server = Server::start(content(50_000), tag);
        let object = open_one(&server);
        *server.content.lock().unwrap() = (content(60_000), tag.replace("v1", "v2"));
        let error = read(&[(&object, 0..10)]).unwrap_err();
        // Without a tag there are only time and size.
        assert!(matches!(error, ObjectError::Replaced { .. }), "{error}");
    }
}

#[test]
fn requests_that_fail_are_repeated() {
    keep_blocks_here();
    for tag in ["\"v1\"", ""] {
        let content = content(50_000);
        let server = Server::start(content.clone(), tag);
        server.refuses.store(2, Ordering::SeqCst);
        let object = open_one(&server);
        server.refuses.store(2, Ordering::SeqCst);
        server.breaks_off.store(1, Ordering::SeqCst);
        assert_eq!(read(&[(&object, 0..50_000)]).unwrap()[0], content);
        assert_eq!(server.breaks_off.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn what_is_not_there_is_told_at_once() {
    let server = Server::start(content(10), "\"v1\"");
    let gone = server.url.replace("file", "gone");
    assert!(matches!(open(std::slice::from_ref(&gone)), Err(ObjectError::NotFound { .. })));
    assert_eq!(get(&gone).unwrap(), None);
    assert_eq!(get(&server.url).unwrap().unwrap(), content(10));
    assert!(list(&server.url).unwrap_err().to_string().contains("{000..146}"));
}

#[test]
fn addresses_have_parts() {
    let parsed = |url: &str| Address::parse(url).unwrap();
    assert_eq!(parsed("s3://b/a/c.tar"), Address { scheme: Scheme::S3, host: "b".to_owned(), key: "a/c.tar".to_owned() });
    assert_eq!(parsed("gs://b").key, "");
    assert_eq!(parsed("https://h:8443/x/").root(), "https://h:8443");
    for (wrong, word) in [
        ("s3:///x", "no bucket"),
        ("http://example.org/x.tar", "https://"),
        ("https://u:p@h/x", "environment"),
        ("https://h/x?sig=1", "query"),
        ("ftp://h/x", "no address"),
    ] {
        assert!(Address::parse(wrong).unwrap_err().to_string().contains(word), "{wrong}");
    }
    assert!(is_address(Path::new("s3://b/k")) && !is_address(Path::new("data/s3:/b")) && !is_address(Path::new("x://y")));
    assert!(is_loopback("127.0.0.1:5000") && is_loopback("[::1]:80") && is_loopback("localhost") && !is_loopback("10.0.0.1:80"));
}

#[test]
fn a_profile_is_that_of_the_command_line() {
    let credentials = "[other]\naws_access_key_id=X\n\n[default]\n# mine\naws_access_key_id = A\naws_secret_access_key = S=/+\n";
    let config = "[default]\nregion = eu-central-1\n[profile other]\nregion=us-west-2\naws_secret_access_key=Y\n";
    let profile = |name: &str| super::credentials::of_files(credentials, config, name);
    let default = profile("default").unwrap();
    assert_eq!((default.key_id.as_str(), default.secret.as_str(), default.region.as_deref()), ("A", "S=/+", Some("eu-central-1")));
    assert_eq!(profile("other").unwrap().region.as_deref(), Some("us-west-2"));
    assert_eq!(profile("gone"), None);
}
