//! Pictures of the run, and predictions of pictures, which a member of the ring makes, on their
//! way to the record.

use common::metrics::{MAX_PICTURE_BYTES, RunPicture, Shown};
use common::predictions::Predictions;
use quinn::RecvStream;

use super::clients::Client;
use super::service::BulkService;
use crate::record_writer::ToShow;

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
    may_show(service, client, step)?;
    let _taken = service.budget.take(&client.share, bytes).await;
    let mut png = vec![0; bytes as usize];
    recv.read_exact(&mut png).await.map_err(|e| e.to_string())?;
    client.report_alive();
    let picture = RunPicture { shown, step, png };
    if picture.size().is_none() {
        return Err("it is no PNG file".to_owned());
    }
    show(service, ToShow::Picture(picture))
}

/// Takes predictions, which browsers will be shown: see [`Predictions::check`]. The error is
/// the reason for refusing them, which is sent to the worker.
pub(super) fn put_predictions(service: &BulkService, client: &Client, predictions: Predictions) -> Result<(), String> {
    may_show(service, client, predictions.step)?;
    predictions.check(service.source.info().classes.len())?;
    show(service, ToShow::Predictions(predictions))
}

fn may_show(service: &BulkService, client: &Client, step: u64) -> Result<(), String> {
    service.limits.step(step)?;
    let member = service.admissions.is_member(&client.name);
    if member { Ok(()) } else { Err(format!("{} is not in the run's ring", client.name)) }
}

fn show(service: &BulkService, shown: ToShow) -> Result<(), String> {
    if (service.on_shown)(shown) { Ok(()) } else { Err("the record takes no more pictures now".to_owned()) }
}
