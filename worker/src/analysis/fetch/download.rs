//! Downloads that resume where they were interrupted, and the digests that check them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::ui::counter;
use data_encoding::HEXLOWER;
use digest::Digest;
use sha2::Sha256;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that the download of one file may take.
const FILE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most bytes that are read for one file.
const MAX_BYTES: u64 = 4 << 30;

/// Fetches `url` into `path`, appending to the bytes that are already there.
pub(super) fn resume(url: &str, path: &Path) -> Result<()> {
    let tls = ureq::tls::TlsConfig::builder().unversioned_rustls_crypto_provider(rustls::crypto::aws_lc_rs::default_provider().into());
    let config = ureq::Agent::config_builder().timeout_connect(Some(CONNECT_TIMEOUT)).timeout_global(Some(FILE_TIMEOUT));
    let agent: ureq::Agent = config.tls_config(tls.build()).build().into();
    let mut file = File::options().create(true).append(true).open(path).with_context(|| format!("could not open `{}`", path.display()))?;
    let there = file.seek(SeekFrom::End(0))?;
    let mut request = agent.get(url);
    if there > 0 {
        request = request.header("range", format!("bytes={there}-"));
    }
    let mut response = request.call()?;
    let start = match response.status().as_u16() {
        206 => there,
        200 => {
            file.set_len(0)?;
            0
        }
        status => bail!("the server answered {status}"),
    };
    let total = response.body().content_length().map(|n| n + start);
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let bar = counter(&format!("{name} (bytes)"), total);
    bar.set_position(start);
    let mut body = response.body_mut().with_config().limit(MAX_BYTES).reader();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let n = body.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        file.write_all(&chunk[..n]).with_context(|| format!("could not write to `{}`", path.display()))?;
        bar.inc(n as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// The SHA-256 of all that is read, in hexadecimal digits.
pub(super) fn sha256(mut content: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut content, &mut hasher)?;
    Ok(HEXLOWER.encode(&hasher.finalize()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    /// A server for two requests that honours ranges.
    fn serve(content: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.unwrap();
                let mut from = 0;
                for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok).take_while(|l| !l.is_empty()) {
                    if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                        from = range.trim_end_matches('-').parse().unwrap();
                    }
                }
                let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len() - from);
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&content[from..]).unwrap();
            }
        });
        url
    }

    #[test]
    fn a_cut_download_goes_on_where_it_was() {
        let content = b"0123456789abcdef";
        let url = serve(content);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.gz.part");
        std::fs::write(&path, &content[..5]).unwrap();
        resume(&url, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
        std::fs::remove_file(&path).unwrap();
        resume(&url, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}
