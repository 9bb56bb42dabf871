#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::run_dir::tests::{config, step};

/// Reads a request: its first line, and its body.
fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let headers: Vec<String> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let length = |line: &String| line.to_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse().ok());
    let mut body = vec![0; headers.iter().find_map(length).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some((first.trim_end().to_owned(), String::from_utf8(body).ok()?))
}

/// Requests, by their first lines and bodies.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A server that notes what it is asked and answers what `answer` says: a status and a body.
fn serve(answer: fn(&str) -> (u16, &'static str)) -> (Server, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Some((line, body)) = request(&mut stream) else { continue };
            let (status, content) = answer(&line);
            noted.lock().unwrap().push((line, body));
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len());
            let _ = stream.write_all((head + content).as_bytes());
        }
    });
    let server = Server::of(|name| (name == "MLFLOW_TRACKING_URI").then(|| url.clone())).unwrap().unwrap();
    (server, asked)
}

fn tracking(line: &str) -> (u16, &'static str) {
    match line {
        l if l.contains("get-by-name") => (404, r#"{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}"#),
        l if l.contains("experiments/create") => (200, r#"{"experiment_id": "7"}"#),
        l if l.contains("runs/create") => (200, r#"{"run": {"info": {"run_id": "r1", "artifact_uri": "s3://b/7/r1/artifacts"}}}"#),
        _ => (200, "{}"),
    }
}

#[test]
fn a_record_begins_is_written_together_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (server, asked) = serve(tracking);
    let mut first = MlFlow::start(server.clone(), &config(&[]), dir.path(), Vec::new()).unwrap();
    (0..40).for_each(|n| first.step(&step(n)));
    first.step(&StepMetrics { loss: f64::NAN, ..step(40) });
    first.ended(End::Finished, vec![("weights".to_owned(), "w".to_owned())]);
    let lines = std::mem::take(&mut *asked.lock().unwrap());
    let of = |what: &str| lines.iter().filter(|(line, _)| line.contains(what)).map(|(_, body)| body.clone()).collect::<Vec<_>>();
    assert_eq!((of("runs/create").len(), of("experiments/create").len()), (1, 1), "{lines:?}");
    let batches = of("log-batch");
    assert!(batches.len() <= 4 && batches[0].contains("train.lr"), "{lines:?}");
    let metrics = batches.iter().map(|body| body.matches("\"train/loss\"").count()).sum::<usize>();
    assert!(metrics == 41 && batches.iter().any(|body| body.contains("\"NaN\"")), "{metrics}");
    assert!(of("runs/update")[0].contains("FINISHED"), "{lines:?}");

    let again = MlFlow::start(server, &config(&[]), dir.path(), Vec::new()).unwrap();
    again.ended(End::Killed, Vec::new());
    let lines = std::mem::take(&mut *asked.lock().unwrap());
    assert!(!lines.iter().any(|(line, _)| line.contains("runs/create")), "{lines:?}");
    let updates: Vec<&String> = lines.iter().filter(|(line, _)| line.contains("runs/update")).map(|(_, body)| body).collect();
    assert!(updates.len() == 2 && updates[0].contains("RUNNING") && updates[1].contains("KILLED"), "{lines:?}");
}

#[test]
fn a_server_that_refuses_costs_nothing_but_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let (server, asked) = serve(|_| (403, r#"{"message": "who are you?"}"#));
    let mut record = MlFlow::start(server, &config(&[]), dir.path(), Vec::new()).unwrap();
    // Far more than the queue holds.
    (0..3 * QUEUE as u64).for_each(|n| record.step(&step(n)));
    let start = Instant::now();
    record.ended(End::Finished, Vec::new());
    assert!(start.elapsed() < END / 2, "the end of the run waited for a server that refuses");
    assert_eq!(asked.lock().unwrap().len(), 1, "it was asked again");
}

#[test]
fn metrics_wait_for_others_up_to_what_a_request_may_have() {
    let (entries, queue) = sync_channel(2 * METRICS);
    let one = Metric { key: "k", value: 1.0, step: 1, timestamp: 1 };
    (0..METRICS).for_each(|_| entries.send(Entry::Metrics(vec![one; 3])).unwrap());
    let later = Instant::now() + Duration::from_secs(60);
    let (metrics, next) = collected(&queue, vec![one; 3], later);
    assert!(metrics.len() <= METRICS && metrics.len() > METRICS - 3 && matches!(next, Some(Entry::Metrics(_))));
    drop(entries);
    let (rest, next) = collected(&queue, Vec::new(), later);
    assert!(rest.len() > METRICS - 3 && next.is_some());
}
