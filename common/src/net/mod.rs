//! Encrypted, mutually authenticated connections: a certificate authority per run,
//! enrolment by token, QUIC endpoints and their transport settings. It knows neither
//! messages nor gradients.
//!
//! Every node with a certificate of the run is a peer. A node without one can only make
//! an enrolment connection to the coordinator, where it proves the token's secret and
//! gets its certificate, or a visit, where it proves the same and gets none.

mod acceptor;
pub mod addresses;
mod allow_list;
pub mod authority;
mod closing;
pub mod endpoint;
pub mod enrolment;
mod error;
pub mod identity;
mod names;
mod peer;
mod pinned;
mod proof;
mod protocol;
mod queue;
mod race;
pub mod rate_limited_log;
pub mod relay;
mod revoked;
mod slots;
mod socket;
pub(crate) mod tls;
pub mod token;
pub mod tokens;
pub mod transport;
pub(crate) mod visit;

#[cfg(test)]
mod tests;

pub use authority::Authority;
pub use closing::closed_by_peer;
pub(crate) use closing::{explain, explain_failure};
pub use endpoint::Endpoint;
pub use error::{AuthorityError, NetError};
pub use identity::Identity;
pub use names::{COORDINATOR, worker_name, worker_number};
pub use peer::Peer;
pub use protocol::{Alpn, Role};
pub use socket::{BoundSocket, OpenSocket};
pub(crate) use tls::random as random_bytes;
pub use tls::random_word;
pub use token::Token;
pub use transport::Route;
