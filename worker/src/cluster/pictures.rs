//! Pictures of the run and predictions of pictures on their way to the coordinator, which
//! nothing waits for.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use common::metrics::RunPicture;
use common::predictions::Predictions;
use common::wire::messages::{BulkReply, BulkRequest, MAX_CONTROL};
use common::wire::{read_message, write_message};
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::cluster::bulk::Bulk;

/// Pictures that may be on their way; others are left out meanwhile.
const MOST: usize = 4;

/// How long a picture may take, and how long the end of a run waits for those of its last
/// evaluation.
const SENT_WITHIN: Duration = Duration::from_secs(60);
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// What is sent: a request, and the bytes that follow it.
#[derive(Debug)]
pub struct Sent {
    request: BulkRequest,
    bytes: Bytes,
    step: u64,
}

impl Sent {
    pub fn picture(picture: RunPicture) -> Self {
        let RunPicture { shown, step, png } = picture;
        Self { request: BulkRequest::PutPicture { shown, step, bytes: png.len() as u64 }, bytes: png.into(), step }
    }

    pub fn predictions(predictions: Predictions) -> Self {
        Self { step: predictions.step, request: BulkRequest::PutPredictions(predictions), bytes: Bytes::new() }
    }
}

/// The pictures that are on their way.
#[derive(Default)]
pub struct Pictures(JoinSet<()>);

impl Pictures {
    /// Sends it. What does not arrive is missing on the record, and nowhere else.
    pub fn send(&mut self, runtime: &Handle, bulk: &Bulk, sent: Sent) {
        while self.0.try_join_next().is_some() {}
        if self.0.len() >= MOST {
            tracing::debug!("a picture of step {} is left out: others are still on their way", sent.step);
            return;
        }
        let bulk = bulk.clone();
        let work = async move {
            let Sent { request, bytes, step } = sent;
            let sending = bulk.with(|connection| put(connection, &request, bytes.clone()));
            match tokio::time::timeout(SENT_WITHIN, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::debug!("a picture of step {step} is not on the record: {e:#}"),
                Err(_) => tracing::debug!("a picture of step {step} did not arrive within {} s", SENT_WITHIN.as_secs()),
            }
        };
        self.0.spawn_on(work, runtime);
    }

    /// Waits for a while until all have arrived.
    pub async fn settle(&mut self) {
        let arrived = tokio::time::timeout(SETTLED_WITHIN, async { while self.0.join_next().await.is_some() {} }).await;
        if arrived.is_err() {
            tracing::debug!("the run ends before its last pictures have arrived");
        }
    }
}

async fn put(connection: Connection, request: &BulkRequest, bytes: Bytes) -> Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write_message(&mut send, request).await?;
    send.write_chunk(bytes).await?;
    send.finish()?;
    match read_message::<BulkReply>(&mut recv, MAX_CONTROL).await? {
        Some(BulkReply::Stored) => Ok(()),
        Some(BulkReply::Failed { reason }) => bail!("the coordinator refused it: {reason}"),
        _ => bail!("the coordinator gave no answer to it"),
    }
}
