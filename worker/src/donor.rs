//! State from one worker to another: a member that holds the newest committed
//! step gives it to those that do not. One offer at a time, for one generation.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use common::net::{Alpn, Endpoint};
use common::trace;
use common::wire::messages::{BulkReply, BulkRequest, FileSize, MAX_CONTROL, MAX_REQUEST};
use common::wire::{read_message, write_message};
use quinn::{RecvStream, SendStream};
use tokio::sync::watch;

use crate::bulk::read_state;
use crate::replica::State;

/// How long one who asks waits for the donor to hear of the generation too.
const PATIENCE: Duration = Duration::from_secs(30);

/// The names of a state's files on the wire.
const FILES: [&str; 2] = ["model", "optimizer"];

/// A state that others may have.
struct Offer {
    generation: u64,
    /// The names of the generation's members.
    members: Vec<String>,
    state: State,
    blake3: String,
}

/// What this worker has to give, if anything.
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

    /// Everybody has it: the memory is free again.
    pub fn withdraw(&self) {
        self.0.send_if_modified(|offer| offer.take().is_some());
    }

    /// Answers those who ask over `endpoint`, until it closes.
    pub async fn serve(self, endpoint: Arc<Endpoint>) {
        while let Some(peer) = endpoint.accept().await {
            let donor = self.clone();
            tokio::spawn(async move {
                while let Ok((send, receive)) = peer.connection.accept_bi().await {
                    if let Err(e) = donor.answer(peer.name.as_deref().unwrap_or_default(), send, receive).await {
                        tracing::debug!("a request for state ended: {e:#}");
                    }
                }
            });
        }
    }

    async fn answer(&self, asker: &str, mut send: SendStream, mut receive: RecvStream) -> Result<()> {
        let request = read_message::<BulkRequest>(&mut receive, MAX_REQUEST).await?;
        let Some(BulkRequest::GetState { generation, step }) = request else { bail!("asked a worker for something else than state") };
        let mut offers = self.0.subscribe();
        let wanted = |offer: &Option<Arc<Offer>>| offer.as_ref().is_some_and(|o| o.generation >= generation);
        let offer = match tokio::time::timeout(PATIENCE, offers.wait_for(wanted)).await {
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
                write_message(&mut send, &BulkReply::State { files, blake3: offer.blake3.clone() }).await?;
                for bytes in contents {
                    send.write_all(bytes).await?;
                }
            }
        }
        send.finish()?;
        // Until it is acknowledged: a connection that closes drops what is not.
        let _ = send.stopped().await;
        Ok(())
    }
}

/// Gets the state before `step` from the worker `name` at `address`; no file of it
/// can have more than `largest` bytes.
pub async fn fetch(endpoint: &Endpoint, address: SocketAddr, name: &str, generation: u64, step: u64, largest: u64) -> Result<State> {
    let connection = endpoint.connect(address, name, Alpn::Bulk).await?;
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

fn digest(model: &[u8], optimizer: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    for bytes in [model, optimizer] {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update_rayon(bytes);
    }
    hasher.finalize().to_hex().to_string()
}
