//! The contents of a dataset that is too large to be read before a run starts: read while
//! it trains, then held against what the run was started with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::differences::of_data;
use super::error::RunDirError;
use super::view::DataDescription;
use crate::dataset::SampleSource;

/// How much the reader yields to threads that train (`nice`).
#[cfg(target_os = "linux")]
const YIELDS: i32 = 10;

/// A thread that reads a dataset once.
#[derive(Debug)]
pub struct ContentsCheck {
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<Result<(), RunDirError>>>,
}

impl ContentsCheck {
    /// Starts to read what the fingerprint of `source`, the data of the run in `run`, does
    /// not cover. The first run to have read it all records what it is. If it is not
    /// what was recorded before, `on_other` is called once, or with `accept` the new one is
    /// recorded.
    pub fn start(
        run: &Path,
        source: Arc<dyn SampleSource>,
        accept: bool,
        on_other: impl FnOnce() + Send + 'static,
    ) -> Result<Self, RunDirError> {
        let over = Arc::new(AtomicBool::new(false));
        if source.files().is_none_or(|files| files.contents.is_some()) {
            return Ok(Self { over, reader: None });
        }
        let (path, told) = (run.to_owned(), Arc::clone(&over));
        let read = move || {
            yield_to_others();
            let checked = check(&path, source.as_ref(), accept, &|| !told.load(Ordering::Relaxed));
            if let Err(e) = &checked {
                tracing::error!("{e}");
                on_other();
            }
            checked
        };
        let reader = std::thread::Builder::new().name("contents".to_owned()).spawn(read);
        let reader = reader.map_err(RunDirError::io("read the data of", run))?;
        Ok(Self { over, reader: Some(reader) })
    }

    /// Ends the reading. Errors if the data has turned out to be other than the run's.
    pub fn finish(mut self) -> Result<(), RunDirError> {
        self.over.store(true, Ordering::Relaxed);
        let reader = self.reader.take();
        reader.map_or(Ok(()), |reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for ContentsCheck {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// What keeps the data from being read, or dataset.json from being written, is said and
/// ends no run.
fn check(run: &Path, source: &dyn SampleSource, accept: bool, go_on: &(dyn Fn() -> bool + Sync)) -> Result<(), RunDirError> {
    let contents = match source.read_contents(go_on) {
        Ok(Some(contents)) => contents,
        Ok(None) => return Ok(()),
        Err(e) => {
            tracing::warn!("the data could not be held against what the run was started with: {e}");
            return Ok(());
        }
    };
    let mut found = DataDescription::of(source);
    if let Some(files) = &mut found.files {
        files.contents = Some(contents);
    }
    let recorded = match DataDescription::read(run) {
        Ok(Some(kept)) if kept.agrees(&found) && kept.contents().is_some() => Ok(()),
        Ok(Some(kept)) if !kept.agrees(&found) => {
            let (path, differences) = (PathBuf::from(run), of_data(&kept, &found));
            if !accept {
                return Err(RunDirError::OtherData { path, differences });
            }
            tracing::warn!("goes on with other data than before, as --accept-data says: {differences}");
            found.write(run)
        }
        Ok(_) => found.write(run),
        Err(e) => Err(e),
    };
    if let Err(e) = recorded {
        tracing::warn!("could not record what the data contains: {e}");
    }
    Ok(())
}

/// On Linux a thread has a priority of its own.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::nice(YIELDS) {
        tracing::debug!("could not lower the priority of the thread that reads the data: {e}");
    }
}
