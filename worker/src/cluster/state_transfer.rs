//! Transfers of state from one worker to another: a member that holds the newest
//! committed step, the donor, sends it to the members that lack it. A donor has one
//! offer at a time, for one generation.

use common::digest::Digest;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use common::net::{Alpn, Endpoint};
use common::timing::{CONNECTION_SILENCE, DONOR_ANSWERED, DONOR_KNOWS};
use common::trace;
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_CONTROL, MAX_REQUEST, Member};
use common::wire::{read_message, write_message};
use quinn::{RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::bulk::read_state;
use crate::cluster::probe;
use crate::replica::State;

/// The names of a state's files on the wire.
const FILES: [&str; 2] = ["model", "optimizer"];

/// A state that other members may fetch.
struct Offer {
    generation: u64,
    /// The names of the generation's members.
    members: Vec<String>,
    state: State,
    blake3: Digest,
}

/// The state that this worker offers, if any.
#[derive(Clone)]
pub struct Donor(watch::Sender<Option<Arc<Offer>>>);

impl Default for Donor {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Donor {
    /// Offers `state` to the members of `generation`.
    pub fn offer(&self, generation: u64, members: Vec<String>, state: State) {
        let _span = trace::span("digest of the state", Some(state.step));
        let blake3 = digest(&state.model, &state.optimizer);
        self.0.send_replace(Some(Arc::new(Offer { generation, members, state, blake3 })));
    }

    /// Frees the memory of the offer, once every member has the state.
    pub fn withdraw(&self) {
        self.0.send_if_modified(|offer| offer.take().is_some());
    }

    /// Answers requests over `endpoint`, until it closes.
    pub async fn serve(self, endpoint: Arc<Endpoint>) {
        while let Some(peer) = endpoint.accept().await {
            let donor = self.clone();
            tokio::spawn(async move {
                while let Ok((send, receive)) = peer.connection.accept_bi().await {
                    if let Err(e) = donor.respond(peer.name.as_deref().unwrap_or_default(), send, receive).await {
                        tracing::debug!("a request for state ended: {e:#}");
                    }
                }
            });
        }
    }

    async fn respond(&self, asker: &str, mut send: SendStream, mut receive: RecvStream) -> Result<()> {
        let request = read_message::<BulkRequest>(&mut receive, MAX_REQUEST).await?;
        let (generation, step) = match request {
            Some(BulkRequest::GetState { generation, step }) => (generation, step),
            Some(BulkRequest::Measure { bytes }) => return probe::serve(&mut send, &mut receive, bytes).await,
            _ => bail!("asked a worker for something else than state"),
        };
        let mut offers = self.0.subscribe();
        let wanted = |offer: &Option<Arc<Offer>>| offer.as_ref().is_some_and(|o| o.generation >= generation);
        let offer = match timeout(DONOR_KNOWS, offers.wait_for(wanted)).await {
            Ok(Ok(offer)) => offer.clone(),
            _ => None,
        };
        match offer.filter(|o| o.generation == generation && o.state.step == step && o.members.iter().any(|m| m == asker)) {
            None => {
                let reason = format!("this worker has no state of step {step} to give to `{asker}` in generation {generation}");
                write_message(&mut send, &BulkReply::Failed { reason }).await?;
            }
            Some(offer) => {
                let contents = [&offer.state.model, &offer.state.optimizer];
                let size = |(name, bytes): (&str, &&Vec<u8>)| FileSize { name: name.to_owned(), bytes: bytes.len() as u64 };
                let files = FILES.into_iter().zip(&contents).map(size).collect();
                write_message(&mut send, &BulkReply::State { files, blake3: offer.blake3 }).await?;
                for bytes in contents {
                    send.write_all(bytes).await?;
                }
            }
        }
        send.finish()?;
        // Waits until all bytes are acknowledged: a connection that closes drops the
        // others.
        let _ = send.stopped().await;
        Ok(())
    }
}

/// Fetches the state before `step` from the worker `donor`; no file of it can have more
/// than `largest` bytes.
pub async fn fetch(endpoint: &Endpoint, donor: &Member, generation: u64, step: u64, largest: u64) -> Result<State> {
    let (name, addresses) = (&donor.name, donor.addresses());
    let silent = |_| anyhow!("`{name}` at {} does not answer within {} s", donor.addr, DONOR_ANSWERED.as_secs());
    let connecting = endpoint.connect_any(&addresses, name, Alpn::Bulk, CONNECTION_SILENCE);
    let connection = timeout(DONOR_ANSWERED, connecting).await.map_err(silent)??;
    let (mut send, mut receive) = connection.open_bi().await?;
    write_message(&mut send, &BulkRequest::GetState { generation, step }).await?;
    send.finish()?;
    let (files, blake3) = match read_message::<BulkReply>(&mut receive, MAX_CONTROL).await? {
        Some(BulkReply::State { files, blake3 }) if files.len() == FILES.len() => (files, blake3),
        Some(BulkReply::Failed { reason }) => bail!("`{name}` gave no state: {reason}"),
        _ => bail!("`{name}` gave no state"),
    };
    let state = read_state(&mut receive, step, &files, largest, &format!("`{name}`")).await?;
    let checking = trace::span("digest of the state", Some(step));
    if digest(&state.model, &state.optimizer) != blake3 {
        bail!("the state that `{name}` sent is not what it says it is: the digests differ");
    }
    drop(checking);
    connection.close(0u32.into(), b"thanks");
    Ok(state)
}

fn digest(model: &[u8], optimizer: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for bytes in [model, optimizer] {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update_rayon(bytes);
    }
    hasher.finalize().into()
}
