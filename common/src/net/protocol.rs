//! The purposes of connections, and which role accepts which.

/// What a connection is for, agreed in its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// A newcomer without a certificate gets one.
    Enrol,
    /// A node without a certificate, which knows a token's secret, measures the network.
    Doctor,
    /// Small messages between coordinator and worker.
    Control,
    /// State, data and checkpoints.
    Bulk,
    /// Gradients from one worker to the next.
    Ring,
    /// Packets of two workers of which one does not reach the other.
    Relay,
}

impl Alpn {
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Enrol => b"ringleader-enroll/1",
            Self::Doctor => b"ringleader-doctor/1",
            Self::Control => b"ringleader-control/1",
            Self::Bulk => b"ringleader-bulk/1",
            Self::Ring => b"ringleader-ring/1",
            Self::Relay => b"ringleader-relay/1",
        }
    }
}

/// What an endpoint accepts connections for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Enrolment and diagnosis without a certificate; control, bulk and relay with one.
    Coordinator,
    /// Ring and bulk, with a certificate only.
    Worker,
}

impl Role {
    pub(super) fn alpns(self) -> &'static [Alpn] {
        match self {
            Self::Coordinator => &[Alpn::Enrol, Alpn::Doctor, Alpn::Control, Alpn::Bulk, Alpn::Relay],
            Self::Worker => &[Alpn::Ring, Alpn::Bulk],
        }
    }
}
