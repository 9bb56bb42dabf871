//! Pictures of the run, which a member of the ring draws, on their way to the record.

use common::metrics::{MAX_PICTURE_BYTES, RunPicture, Shown};
use quinn::RecvStream;

use super::clients::Client;
use super::service::BulkService;

/// Receives a picture. The error is the reason for refusing it, which is sent to the worker.
pub(super) async fn put(
    service: &BulkService,
    client: &Client,
    recv: &mut RecvStream,
    shown: Shown,
    step: u64,
    bytes: u64,
) -> Result<(), String> {
    if bytes > MAX_PICTURE_BYTES as u64 {
        return Err(format!("a picture has at most {MAX_PICTURE_BYTES} bytes, and this one {bytes}"));
    }
    service.limits.step(step)?;
    if !service.admissions.is_member(&client.name) {
        return Err(format!("{} is not in the run's ring", client.name));
    }
    let _taken = service.budget.take(&client.share, bytes).await;
    let mut png = vec![0; bytes as usize];
    recv.read_exact(&mut png).await.map_err(|e| e.to_string())?;
    client.report_alive();
    let picture = RunPicture { shown, step, png };
    if picture.size().is_none() {
        return Err("it is no PNG file".to_owned());
    }
    if (service.on_picture)(picture) { Ok(()) } else { Err("the record takes no more pictures now".to_owned()) }
}
