//! The page of a run, asked as a program asks it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::until;

/// Where a run's page is.
#[derive(Debug, Clone)]
pub struct Page {
    /// What a person opens.
    pub url: String,
    address: String,
    token: String,
}

impl Page {
    /// Waits until the run in this folder has a page.
    pub fn of(run: &Path) -> Self {
        let path = run.join("keys/page");
        until("page", Duration::from_secs(30), || Self::at(std::fs::read_to_string(&path).ok()?.strip_suffix('\n')?))
    }

    /// The page at the address that was printed.
    pub fn at(url: &str) -> Option<Self> {
        let (address, token) = url.strip_prefix("http://")?.split_once("/?token=")?;
        Some(Self { url: url.to_owned(), address: address.to_owned(), token: token.to_owned() })
    }

    fn ask(&self, request: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1.1 200"), "{request}{answer}");
        Some(body.to_owned())
    }

    /// The answer to a request; `None` where nobody answers.
    pub fn get(&self, path: &str) -> Option<String> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address))
    }

    /// The same, as JSON.
    pub fn json(&self, path: &str) -> Option<Value> {
        let text = self.get(path)?;
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// Has the coordinator do something.
    pub fn post(&self, path: &str, body: &str) -> String {
        let (address, token, length) = (&self.address, &self.token, body.len());
        let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}");
        self.ask(&format!("{head}\r\n\r\n{body}")).unwrap_or_else(|| panic!("nobody answers {path}"))
    }

    /// All that comes over the stream of events until it ends.
    pub fn events(&self) -> std::thread::JoinHandle<String> {
        let mut stream = TcpStream::connect(&self.address).unwrap_or_else(|e| panic!("{e}"));
        let request = format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // The process may end before it has closed the stream.
            let _ = stream.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }

    /// Waits until the status is as it should be, and returns it.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, Duration::from_secs(60), || self.json("/status.json").filter(&holds))
    }
}
