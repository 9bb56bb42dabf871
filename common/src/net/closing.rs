//! Why connections end: the close codes, and how messages describe the end of a
//! connection.

use quinn::{ConnectionError, TransportErrorCode, VarInt};

use crate::ui::visible_within;

/// The close code of a node whose program ends. A connection that is merely dropped
/// closes with 0, and its peer may connect again.
pub(super) const ENDED: VarInt = VarInt::from_u32(4);
/// The close code for a peer for which there is no place now.
pub(super) const BUSY: VarInt = VarInt::from_u32(2);

/// The most characters of a peer's own text in a message.
const MAX_REASON_CHARS: usize = 300;

/// Whether the same attempt may succeed later: the peer did not answer or had no place;
/// nothing was found to be wrong.
pub(super) fn is_transient(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::TimedOut | ConnectionError::Reset => true,
        ConnectionError::ApplicationClosed(close) => close.error_code == BUSY || close.error_code == VarInt::from_u32(0),
        // A peer that closes a connection during the handshake can send no other code.
        ConnectionError::ConnectionClosed(close) => {
            [TransportErrorCode::NO_ERROR, TransportErrorCode::CONNECTION_REFUSED, TransportErrorCode::APPLICATION_ERROR]
                .contains(&close.error_code)
        }
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    }
}

/// Whether the peer has closed its endpoint, as a program does at its end: then the
/// peer is gone. After silence, a reset, or a connection dropped in favour of another
/// one, the peer may still exist and come back.
pub fn closed_by_peer(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == ENDED)
}

/// Why something on a connection failed: the reason for which the connection ended, if
/// it has, and else `error`.
pub(crate) fn explain_failure(connection: &quinn::Connection, error: &dyn std::fmt::Display) -> String {
    connection.close_reason().map_or_else(|| visible_within(&error.to_string(), MAX_REASON_CHARS), |reason| explain(&reason))
}

/// Why a connection ended, in words for a person. The peer's own text is escaped.
pub(crate) fn explain(error: &ConnectionError) -> String {
    let words = match error {
        ConnectionError::TimedOut => "nothing was heard from it; it may be gone, the address wrong, or UDP blocked on the way".to_owned(),
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            if reason.is_empty() { "it closed the connection".to_owned() } else { format!("it closed the connection: {reason}") }
        }
        ConnectionError::TransportError(error) if error.reason.contains("UnknownIssuer") => "its certificate is not of this run".to_owned(),
        ConnectionError::TransportError(error) if error.reason.contains("not valid for name") => {
            format!("its certificate is for another node ({})", error.reason)
        }
        ConnectionError::ConnectionClosed(close) => format!("it refused the connection: {close}"),
        ConnectionError::LocallyClosed => "the connection was closed here".to_owned(),
        other => other.to_string(),
    };
    visible_within(&words, MAX_REASON_CHARS)
}
