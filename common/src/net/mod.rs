//! Encrypted, mutually authenticated connections: a certificate authority per
//! run, enrolment by token, QUIC endpoints and their transport settings. It
//! knows neither messages nor gradients.
//!
//! Whoever holds a certificate of the run is a peer. The only connection that a
//! peer without one can make is the enrolment at the coordinator, where it
//! proves the token's secret and gets its certificate.

pub mod authority;
pub mod endpoint;
pub mod enrolment;
pub mod identity;
pub mod quiet;
mod socket;
pub(crate) mod tls;
pub mod token;
pub mod tokens;
pub mod transport;

#[cfg(test)]
mod tests;

pub use authority::Authority;
pub use endpoint::{Alpn, Endpoint, NetError, Peer, Role};
pub use identity::{COORDINATOR, Identity, worker_name};
pub use token::Token;
pub use transport::Route;
