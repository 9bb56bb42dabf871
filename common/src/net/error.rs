//! What can go wrong with connections and with the run's authority.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::relay::Shown;

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("could not open UDP {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("could not set up TLS: {0}")]
    Setup(Box<dyn std::error::Error + Send + Sync>),
    /// `transient`: a later attempt may succeed.
    #[error("could not connect to `{name}` at {}: {cause}", Shown(*address))]
    Connect { name: String, address: SocketAddr, cause: String, transient: bool },
    /// None of several addresses led there.
    #[error("could not connect to `{name}` at any of its addresses: {}", causes(tried))]
    ConnectAny { name: String, tried: Vec<(SocketAddr, String)> },
    #[error("`{name}` has no address at which it could be reached")]
    NoAddress { name: String },
}

impl NetError {
    /// That none of these addresses led to the node `name`: of one, its own error.
    pub(super) fn of_all(name: &str, mut tried: Vec<(SocketAddr, Self)>) -> Self {
        if tried.len() == 1 {
            return tried.remove(0).1;
        }
        let cause = |error: Self| if let Self::Connect { cause, .. } = error { cause } else { error.to_string() };
        let tried: Vec<_> = tried.into_iter().map(|(address, error)| (address, cause(error))).collect();
        let name = name.to_owned();
        if tried.is_empty() { Self::NoAddress { name } } else { Self::ConnectAny { name, tried } }
    }
}

fn causes(tried: &[(SocketAddr, String)]) -> String {
    let causes: Vec<String> = tried.iter().map(|(address, cause)| format!("{} ({cause})", Shown(*address))).collect();
    causes.join(", ")
}

impl From<rustls::Error> for NetError {
    fn from(error: rustls::Error) -> Self {
        Self::Setup(error.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("could not use the run's authority file `{}`: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the run's authority file `{}` is damaged: {problem}; restore it, or remove the folder to start a new authority (workers then need its new token)", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "the tokens in `{}` are damaged: {problem}; restore the file, or remove it: then what was revoked stays revoked, and newcomers need a token of `coordinator token new RUN`",
        path.display()
    )]
    Tokens { path: PathBuf, problem: String },
    #[error("a token can admit workers for at most ten years (10y), and not for {seconds} s")]
    Lifetime { seconds: u64 },
    #[error("another process has held `{}` for {} s: end it, and try again", path.display(), held.as_secs())]
    Busy { path: PathBuf, held: Duration },
    #[error("the run has no token `{id}`: `coordinator token list RUN` has those that it has")]
    NoToken { id: String },
    #[error("`{name}` cannot be the name of a node: use lower-case letters, digits and hyphens, at most 63")]
    Name { name: String },
    #[error("the certificate request is not valid: {0}")]
    Request(String),
    #[error("could not make a key or certificate: {0}")]
    Crypto(#[from] rcgen::Error),
    #[error("could not set up TLS: {0}")]
    Server(String),
    #[error("the system gives no random numbers")]
    Random,
}

impl AuthorityError {
    /// For `map_err`: names the file.
    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}
