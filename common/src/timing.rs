//! How long the processes of a run wait for one another: the times that must fit each
//! other.
//!
//! `T` is `cluster.timeout_ms`: how long a member may be silent. These follow from it:
//!
//! | what | how long | who waits |
//! |---|---|---|
//! | `T` | T | the coordinator, for any message of a connected worker; every rank, for its connections to close when it leaves a ring |
//! | [`ring_idle_timeout`] | 3/4 T | a member, for a packet from its neighbour in the ring |
//! | [`isolated_after`] | T/2 | the coordinator, for a message of any worker: without one it declares no worker lost, and says so after T |
//! | [`longest_counted_pause`] | T/4 | the coordinator: of a longer pause between two checks, only this much counts as silence |
//! | [`reconnect_timeout`] | T, at least [`RECONNECT`] | the coordinator, for a worker whose connection broke |
//! | [`forming_timeout`] | 1.5 T; the first ring 2 T, at least [`FIRST_RING`]; with state to move, longer | members, until their ring has formed |
//! | [`reach_timeout`] | 3 T | a member, for any answer of its successor, while others get state |
//! | [`first_step_timeout`] | 2 T | a ring, for the first step of a newcomer |
//! | [`leave_timeout`] | T, at least [`LEAVE`] | the coordinator, for a member to leave a ring that is over |
//! | | T + 5 s | `coordinator local`, for the run to end once too few workers are left |
//!
//! Long steps lengthen `first_step_timeout` and `leave_timeout`: `membership/pace.rs` knows
//! how long steps take. T is at least two heartbeats; `cluster.stall_ms` and `orphan_ms`
//! are at least T. The meaning of these, of `handover_ms` and of `rejoin_ms` is documented
//! in the run's config. How long newcomers are left out is in `membership/paths.rs`.

use std::time::Duration;

// Connections.

/// How long a handshake may take, on either side.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// A connection is given up after this long without a packet, unless the peer that
/// makes it asks for less.
pub const CONNECTION_SILENCE: Duration = Duration::from_secs(10);

/// How long a new control connection may take to say hello.
pub const HELLO: Duration = Duration::from_secs(10);

/// The same on a ring connection.
pub const RING_HELLO: Duration = Duration::from_secs(1);

/// How long a peer may take to make room for a piece of a bulk answer. After that, the
/// resources of its request are needed elsewhere: it may ask again.
pub const BULK_STALL: Duration = Duration::from_secs(8);

// A worker and its coordinator.

/// A coordinator that is silent for this long is gone or unreachable: training
/// continues, and the worker tries to reconnect.
pub const COORDINATOR_SILENCE: Duration = Duration::from_secs(3);

/// How long one attempt to reach the coordinator may take.
pub const COORDINATOR_ATTEMPT: Duration = Duration::from_secs(2);

/// How long a worker whose connection broke takes to notice and to reconnect: no less
/// than [`COORDINATOR_SILENCE`].
pub const RECONNECT: Duration = COORDINATOR_SILENCE;

// Newcomers.

/// How long a worker tries to reach one peer that it must probe.
pub const PROBE: Duration = Duration::from_secs(3);

/// How long a worker tries to reach another one directly before it also tries the way
/// through the coordinator, unless all else has failed by then.
pub const RELAY_AFTER: Duration = Duration::from_secs(1);

/// A test transfer that takes longer than this has shown that the link is slow.
pub const PROBE_TRANSFER: Duration = Duration::from_secs(2);

/// How long all probes of one newcomer may take: [`PROBE`] and [`PROBE_TRANSFER`].
pub const PROBES: Duration = Duration::from_secs(5);

/// How long a peer that is probed may connect in turn: longer than all probes take.
pub const PROBED_MAY_CONNECT: Duration = Duration::from_secs(6);

/// How long a donor of state may take to answer at all: all other members wait
/// meanwhile.
pub const DONOR_ANSWERED: Duration = Duration::from_secs(2);

/// How long a request for state may wait for the donor to learn of the generation too.
pub const DONOR_KNOWS: Duration = Duration::from_secs(30);

// What follows from the timeout.

/// The first ring may take at least this long: waiting loses nothing there.
pub const FIRST_RING: Duration = Duration::from_secs(8);

/// A generation that is over waits at least this long for a member that is alive and
/// does not leave it. A step in flight is dropped at its next exchange, so this is
/// longer than most forward and backward passes take.
pub const LEAVE: Duration = Duration::from_secs(60);

/// Keep-alives are sent every eighth of the timeout, so a silent neighbour is noticed
/// before the timeout ends.
pub fn ring_idle_timeout(timeout: Duration) -> Duration {
    timeout * 3 / 4
}

pub fn longest_counted_pause(timeout: Duration) -> Duration {
    timeout / 4
}

pub fn isolated_after(timeout: Duration) -> Duration {
    timeout / 2
}

pub fn reconnect_timeout(timeout: Duration) -> Duration {
    timeout.max(RECONNECT)
}

pub fn forming_timeout(timeout: Duration, first: bool) -> Duration {
    if first { FIRST_RING.max(timeout * 2) } else { timeout * 3 / 2 }
}

pub fn reach_timeout(timeout: Duration) -> Duration {
    timeout * 3
}

pub fn first_step_timeout(timeout: Duration) -> Duration {
    timeout * 2
}

pub fn leave_timeout(timeout: Duration) -> Duration {
    timeout.max(LEAVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that waits for another waiting process must wait longer.
    #[test]
    fn the_times_fit_each_other() {
        assert!(PROBE + PROBE_TRANSFER <= PROBES && PROBES < PROBED_MAY_CONNECT);
        assert!(2 * RELAY_AFTER <= PROBE && 2 * RELAY_AFTER <= DONOR_ANSWERED);
        assert!(RECONNECT >= COORDINATOR_SILENCE && COORDINATOR_ATTEMPT < COORDINATOR_SILENCE);
        for timeout in [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(20)] {
            assert!(longest_counted_pause(timeout) < isolated_after(timeout) && isolated_after(timeout) < ring_idle_timeout(timeout));
            assert!(ring_idle_timeout(timeout) < timeout && timeout <= reconnect_timeout(timeout));
            assert!(forming_timeout(timeout, false) <= forming_timeout(timeout, true) && timeout < forming_timeout(timeout, false));
            assert!(forming_timeout(timeout, false) < reach_timeout(timeout));
        }
    }
}
