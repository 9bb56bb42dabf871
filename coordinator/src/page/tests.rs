//! The server, asked over sockets.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::config::Config;
use common::dataset;
use common::net::{Authority, Token};
use common::predictions::{Guess, PredictedPicture, Predictions};
use common::run_dir::{DataDescription, Event, RunDir};
use common::status::{MemberStatus, Status};
use tokio::sync::{mpsc, watch};

use super::curve::tests::step;
use super::server::{REQUESTS, STREAMS};
use super::source::EVERY;
use super::*;
use crate::inbox::LauncherEvent;

const CONFIG: &str = "name = \"shown\"\n[model]\nkind = \"mlp\"\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 2\n";

/// A run that is served.
struct Shown {
    address: SocketAddr,
    token: String,
    run_dir: RunDir,
    status: watch::Sender<Status>,
    events: mpsc::Receiver<LauncherEvent>,
    authority: Arc<Authority>,
    _running: Running,
    _folder: tempfile::TempDir,
}

fn shown(address: &str) -> Shown {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let config = Config::parse(CONFIG, "test", &[]).unwrap();
    let mut run_dir = RunDir::create(&path, &config).unwrap();
    let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
    run_dir.write_dataset(&DataDescription::of(source.as_ref())).unwrap();
    run_dir.record(&Event::RunStarted { name: "shown".to_owned(), step: 0 }).unwrap();
    let authority = Arc::new(Authority::open(&path.join("keys")).unwrap());
    let (send, events) = mpsc::channel(4);
    let member = MemberStatus { name: "worker-1".to_owned(), shards: (0, 2), ..MemberStatus::default() };
    let status = watch::Sender::new(Status { steps: 10, generation: 1, members: vec![member], ..Status::default() });
    let actions = Actions { events: send, authority: Arc::clone(&authority), address: "192.0.2.7:7474".to_owned() };
    let page = Page::of_run(address.parse().unwrap(), "192.0.2.7", &path, actions).unwrap();
    let (address, token) = (page.listener.local_addr().unwrap(), page.gate.token.clone());
    assert_eq!(std::fs::read_to_string(path.join("keys/page")).unwrap(), format!("{}\n", page.url));
    assert!(page.url.ends_with(&format!(":{}/?token={token}", address.port())), "{}", page.url);
    let source = Source::live(&path, status.subscribe()).unwrap();
    let running = page.start(vec![source]).unwrap();
    Shown { address, token, run_dir, status, events, authority, _running: running, _folder: folder }
}

impl Shown {
    /// Sends a request as it is, and returns the whole answer.
    fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A refused request may be answered before all of it was read, which resets.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str, headers: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.address))
    }

    fn post(&self, path: &str, headers: &str, body: &str) -> String {
        self.raw(&format!("POST {path} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\n\r\n{body}", self.address, body.len()))
    }

    /// The headers of this server's own page, opened with the token.
    fn trusted(&self) -> String {
        format!("Origin: http://{}\r\nCookie: ringleader-{}={}\r\n", self.address, self.address.port(), self.token)
    }

    fn stream(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).unwrap();
        stream
    }
}

fn code(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Reads until what came contains `word`.
fn read_until(stream: &mut TcpStream, word: &str) -> String {
    let (mut text, mut chunk, start) = (String::new(), [0; 4096], Instant::now());
    while !text.contains(word) {
        assert!(start.elapsed() < Duration::from_secs(20), "no {word} in {text}");
        let n = stream.read(&mut chunk).unwrap();
        assert!(n > 0, "the end, and no {word} in {text}");
        text += &String::from_utf8_lossy(&chunk[..n]);
    }
    text
}

#[test]
fn a_run_is_shown_as_it_goes_on_and_to_its_end() {
    let mut shown = shown("127.0.0.1:0");
    let mut reader = shown.stream();
    read_until(&mut reader, "\"state\":\"training\"");
    let metrics = step(0, 1.5);
    shown.run_dir.write_step(&metrics).unwrap();
    shown.run_dir.record(&Event::Checkpoint { step: 1 }).unwrap();
    shown.status.send_modify(|status| status.stepped(&metrics));
    let update = read_until(&mut reader, "\"loss\":[1.5]");
    assert!(update.contains("\"step\":1,\"steps\":10"), "{update}");
    let status: serde_json::Value = serde_json::from_str(body(&shown.get("/status.json", ""))).unwrap();
    assert_eq!((&status["version"], &status["step"], &status["name"]), (&1.into(), &1.into(), &"shown".into()));
    assert_eq!(status["workers"][0]["name"], "worker-1");
    let text = shown.get("/metrics", "");
    assert!(text.contains("application/openmetrics-text") && text.contains("\nringleader_step 1.0\n"), "{text}");
    let older = shown.get("/metrics", "Accept: text/plain\r\n");
    assert!(older.contains("text/plain; version=0.0.4") && older.contains("# TYPE ringleader_recoveries_total counter"), "{older}");
    let start = Instant::now();
    while !shown.get("/facts.json?run=0", "").contains("\"checkpoints\":[{\"step\":1,") {
        assert!(start.elapsed() < Duration::from_secs(20), "the checkpoint is not told of");
    }
    assert!(body(&shown.get("/config.toml", "")).contains("kind = \"mlp\""));
    assert!(body(&shown.get("/", "")).contains("<!doctype html>"));
    for missing in ["/keys/page", "/../keys/ca.key", "/status.json?run=1", "/status.json?run=x"] {
        assert_eq!(code(&shown.get(missing, "")), 404, "{missing}");
    }
    shown.run_dir.record(&Event::RunFinished { step: 1 }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(shown._running.finish());
    let mut rest = String::new();
    let _ = reader.read_to_string(&mut rest);
    assert!(rest.contains("\"state\":\"finished\""), "{rest}");
}

/// A PNG file of one grey pixel.
const ONE_PIXEL: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\x0aIDAT\x78\x9c\x63\x68\0\0\0\x82\0\x81\x77\xcd\x72\xb6\0\0\0\0IEND\xae\x42\x60\x82";

/// What xor has two classes for: one picture, of which the model is sure.
fn predictions(step: u64, png: &[u8]) -> Predictions {
    let guesses = vec![Guess { class: 1, probability: 0.75 }, Guess { class: 0, probability: 0.25 }];
    Predictions { step, pictures: vec![PredictedPicture { label: 0, guesses, png: png.to_vec() }] }
}

#[test]
fn predictions_are_shown_with_their_pictures_and_nothing_else_is_served_as_one() {
    let shown = shown("127.0.0.1:0");
    let facts = || serde_json::from_str::<serde_json::Value>(body(&shown.get("/facts.json", ""))).unwrap();
    let predicted = |step: u64| {
        let start = Instant::now();
        loop {
            let facts = facts();
            if facts["predictions"]["step"] == step {
                return facts["predictions"]["pictures"].clone();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{facts}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    assert_eq!(facts()["predictions"], serde_json::Value::Null);
    shown.run_dir.write_predictions(&predictions(4, ONE_PIXEL)).unwrap();
    let pictures = predicted(4);
    let name = pictures[0]["picture"].as_str().unwrap().to_owned();
    let expected = serde_json::json!([{"picture": name, "class": "0", "right": false,
        "guesses": [{"class": "1", "probability": 0.75}, {"class": "0", "probability": 0.25}]}]);
    assert_eq!(pictures, expected);
    let mut stream = TcpStream::connect(shown.address).unwrap();
    write!(stream, "GET /picture.png?run=0&picture={name} HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: gzip\r\n\r\n", shown.address).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(answer.ends_with(ONE_PIXEL) && head.contains("content-type: image/png\r\n") && head.contains("nosniff"), "{head}");
    for missing in ["/picture.png", "/picture.png?picture=", "/picture.png?picture=../config.toml", "/picture.png?run=1&picture=0"] {
        assert_eq!(code(&shown.get(missing, "")), 404, "{missing}");
    }
    let foreign = shown.get(&format!("/picture.png?picture={name}"), "Sec-Fetch-Site: cross-site\r\n");
    assert_eq!(code(&foreign), 403);
    // A record that somebody else has written shows nothing but pictures.
    shown.run_dir.write_predictions(&predictions(5, b"<svg onload=\"alert(1)\"/>")).unwrap();
    std::thread::sleep(2 * EVERY);
    assert_eq!(predicted(4), expected);
    // The next evaluation has the same pictures, which keep their names.
    shown.run_dir.write_predictions(&predictions(8, ONE_PIXEL)).unwrap();
    assert_eq!(predicted(8), expected);
}

#[test]
fn text_is_compressed_for_readers_that_accept_it() {
    let shown = shown("127.0.0.1:0");
    let ask = |path: &str, headers: &str| {
        let mut stream = TcpStream::connect(shown.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", shown.address).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer.split_off(end))
    };
    for path in ["/", "/page.js", "/uplot/uPlot.js", "/curve.json", "/config.toml"] {
        let (plain_head, plain) = ask(path, "");
        let (head, compressed) = ask(path, "Accept-Encoding: br, gzip, deflate\r\n");
        assert!(!plain_head.contains("content-encoding") && head.contains("content-encoding: gzip\r\n"), "{path}: {head}");
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(compressed.as_slice()).read_to_end(&mut text).unwrap();
        assert_eq!(text, plain, "{path}");
        assert!(3 * compressed.len() < 2 * plain.len() || plain.len() < 1000, "{path}: {} of {} bytes", compressed.len(), plain.len());
    }
    assert!(!ask("/nowhere", "Accept-Encoding: gzip\r\n").0.contains("content-encoding"));
}

#[test]
fn other_sites_are_refused_and_nobody_may_frame_the_page() {
    let shown = shown("127.0.0.1:0");
    let own = shown.trusted();
    let foreign = shown.raw(&format!("GET /status.json HTTP/1.1\r\nHost: evil.example\r\n{own}\r\n"));
    let answers = [
        (403, foreign),
        (403, shown.raw("GET http://evil.example/status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        (403, shown.get("/status.json", "Sec-Fetch-Site: cross-site\r\n")),
        (403, shown.get("/events", "Sec-Fetch-Site: same-site\r\n")),
        (403, shown.get("/metrics", "Origin: http://evil.example\r\n")),
        (403, shown.get("/?token=00000000000000000000000000000000", "")),
        (403, shown.get("/status.json", "Authorization: Bearer nonsense\r\n")),
        (200, shown.get("/", "Sec-Fetch-Site: none\r\n")),
        (200, shown.get("/status.json", "Sec-Fetch-Site: same-origin\r\n")),
        (405, shown.post("/status.json", &own, "")),
        (413, shown.post("/leave", &own, &"x".repeat(8192))),
    ];
    for (expected, answer) in answers {
        assert_eq!(code(&answer), expected, "{answer}");
        for header in ["x-frame-options: DENY", "frame-ancestors 'none'", "default-src 'self'", "x-content-type-options: nosniff"] {
            assert!(answer.contains(header), "{header} is not in {answer}");
        }
        assert!(!answer.contains("access-control-allow-origin"), "{answer}");
    }
    let long = shown.get("/status.json", &format!("X: {}\r\n", "x".repeat(40_000)));
    assert!(long.is_empty() || [400, 431].contains(&code(&long)), "{long}");
}

#[test]
fn who_has_the_token_acts_and_nobody_else_does() {
    let mut shown = shown("127.0.0.1:0");
    let (own, cookie) = (shown.trusted(), format!("Cookie: ringleader-{}={}\r\n", shown.address.port(), shown.token));
    let admitted = shown.get(&format!("/?token={}", shown.token), "");
    assert!(code(&admitted) == 303 && admitted.contains("HttpOnly; SameSite=Strict"), "{admitted}");
    assert!(body(&shown.get("/runs.json", &cookie)).contains("\"may_act\":true"));
    assert!(body(&shown.get("/runs.json", "")).contains("\"may_act\":false"));
    let origin = |site: &str| format!("Origin: {site}\r\n{cookie}");
    let strangers =
        ["".to_owned(), cookie.clone(), origin("http://evil.example"), origin("http://localhost:8888"), own.replace(&shown.token, "0")];
    for path in ["/stop", "/leave", "/token"] {
        for headers in &strangers {
            assert_eq!(code(&shown.post(path, headers, "{\"worker\":\"worker-1\"}")), 403, "{path} {headers}");
        }
    }
    assert!(shown.events.try_recv().is_err(), "nobody was heard");
    assert_eq!(code(&shown.post("/leave", &own, "{\"worker\":\"worker-9\"}")), 404);
    assert_eq!(code(&shown.post("/leave", &own, "nonsense")), 400);
    assert_eq!(code(&shown.post("/leave", &own, "{\"worker\":\"worker-1\"}")), 200);
    assert_eq!(shown.events.try_recv().unwrap(), LauncherEvent::Leave { name: "worker-1".to_owned() });
    let bearer = format!("Authorization: Bearer {}\r\n", shown.token);
    assert_eq!(code(&shown.post("/stop", &bearer, "")), 200);
    assert_eq!(shown.events.try_recv().unwrap(), LauncherEvent::StopWithCheckpoint);
    let made: serde_json::Value = serde_json::from_str(body(&shown.post("/token", &own, ""))).unwrap();
    let token = made["join"].as_str().unwrap().strip_prefix("worker join 192.0.2.7:7474 --token ").unwrap();
    token.parse::<Token>().unwrap();
    let now = SystemTime::now();
    let listed = shown.authority.tokens().list().unwrap();
    assert!(listed.iter().any(|t| t.expires > now + Duration::from_secs(86_000) && t.expires < now + Duration::from_secs(87_000)));
    // A full queue is no reason to wait.
    assert!((0..8).map(|_| code(&shown.post("/stop", &own, ""))).any(|code| code == 409));
}

#[test]
fn crowds_and_slow_readers_take_what_is_bounded_and_hold_nobody_up() {
    let shown = shown("127.0.0.1:0");
    let mut streams: Vec<TcpStream> = (0..STREAMS).map(|_| shown.stream()).collect();
    streams.iter_mut().for_each(|stream| _ = read_until(stream, "\"version\":1"));
    let refused = shown.get("/events", "");
    assert!(code(&refused) == 503 && refused.contains("retry-after"), "{refused}");
    assert_eq!(code(&shown.get("/status.json", "")), 200, "whoever asks is answered");
    // Connections that say nothing take the other places, and are cut off.
    let idle: Vec<TcpStream> = (0..REQUESTS).map(|_| TcpStream::connect(shown.address).unwrap()).collect();
    let start = Instant::now();
    assert_eq!(code(&shown.get("/status.json", "")), 200);
    assert!(start.elapsed() < Duration::from_secs(15), "it took {:?}", start.elapsed());
    drop(idle);
    // None of the streams reads; the run's status goes on, and a reader that comes later has the newest.
    drop(streams.pop());
    let members = vec![MemberStatus { name: "x".repeat(1000), ..MemberStatus::default() }; 100];
    for generation in 2..12 {
        shown.status.send_modify(|status| (status.generation, status.members) = (generation, members.clone()));
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut late = shown.stream();
    read_until(&mut late, "\"generation\":11");
}

#[test]
fn a_thousand_readers_at_once_are_all_answered_while_the_run_goes_on() {
    const READERS: usize = 1000;
    // They and this server are in one process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = limit.maximum.map_or(4096, |most| most.min(4096));
    rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: Some(wanted), ..limit }).unwrap();
    let mut shown = shown("127.0.0.1:0");
    let paths = ["/metrics", "/status.json", "/", "/facts.json?run=0"];
    let ask = |n: usize| {
        let mut stream = TcpStream::connect(shown.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", paths[n % paths.len()], shown.address).unwrap();
        stream
    };
    let readers: Vec<TcpStream> = (0..READERS).map(ask).collect();
    // None of them has read yet, and the run's steps are recorded and shown as without them.
    let start = Instant::now();
    for number in 0..50 {
        let metrics = step(number, 1.5);
        shown.run_dir.write_step(&metrics).unwrap();
        shown.status.send_modify(|status| status.stepped(&metrics));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "50 steps took {:?}", start.elapsed());
    let mut answered = 0;
    for mut reader in readers {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer);
        answered += usize::from(code(&String::from_utf8_lossy(&answer)) == 200);
    }
    assert_eq!(answered, READERS);
    let mut late = shown.stream();
    read_until(&mut late, "\"step\":50,\"steps\":10");
}

#[test]
fn elsewhere_the_page_speaks_tls_and_asks_for_its_token() {
    let shown = shown("0.0.0.0:0");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shown.authority.certificate().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let ask = |request: String| {
        let name = rustls::pki_types::ServerName::try_from("192.0.2.7").unwrap();
        let connection = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", shown.address.port())).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let host = format!("192.0.2.7:{}", shown.address.port());
    let get = |path: &str, headers: &str| ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"));
    let asked = get("/", "");
    assert!(code(&asked) == 401 && body(&asked).contains("name=\"token\""), "{asked}");
    for closed in ["/status.json", "/metrics", "/events", "/page.js", "/config.toml"] {
        assert_eq!(code(&get(closed, "")), 401, "{closed}");
    }
    assert_eq!(code(&get("/metrics", &format!("Authorization: Bearer {}\r\n", shown.token))), 200);
    let entered = format!("token={}", shown.token);
    let post =
        format!("POST /enter HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\nContent-Length: {}\r\n\r\n{entered}", entered.len());
    let admitted = ask(post);
    assert!(code(&admitted) == 303 && admitted.contains("; Secure"), "{admitted}");
    assert_eq!(code(&get("/status.json", &format!("Cookie: ringleader-{}={}\r\n", shown.address.port(), shown.token))), 200);
    // Who speaks no TLS learns nothing.
    let mut plain = TcpStream::connect(("127.0.0.1", shown.address.port())).unwrap();
    plain.write_all(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
}

#[test]
fn a_port_that_is_taken_gives_way_to_a_free_one() {
    let first = shown("127.0.0.1:0");
    let page = Page::bind(first.address, "", None).unwrap();
    assert_ne!(page.listener.local_addr().unwrap().port(), first.address.port());
    let beyond = Page::bind("0.0.0.0:0".parse().unwrap(), "192.0.2.7", None).err().unwrap();
    assert!(beyond.to_string().contains("--http 127.0.0.1"), "{beyond}");
    assert_eq!("off".parse(), Ok(Http::Off));
    assert!("7475".parse::<Http>().unwrap_err().contains("IP:PORT"));
}
