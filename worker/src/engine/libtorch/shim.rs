//! What neither burn nor tch offers of libtorch, under safe names: `shim.cpp` has the
//! other side. Streams and events are those of CUDA devices.

#[cfg(test)]
use std::ffi::CString;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use common::config::{Precision, TrainConfig};
use tch::Tensor;
use torch_sys::C_tensor;

use super::super::EngineError;

unsafe extern "C" {
    fn ringleader_free_text(text: *mut c_char);
    fn ringleader_version() -> *const c_char;
    fn ringleader_prepare_process();
    fn ringleader_arithmetic(deterministic: bool, tf32: bool, benchmark: bool) -> *mut c_char;
    #[cfg(test)]
    fn ringleader_read_arithmetic(deterministic: *mut bool, tf32: *mut bool, benchmark: *mut bool);
    fn ringleader_has_bf16(device: c_int, has: *mut bool) -> *mut c_char;
    #[cfg(test)]
    fn ringleader_operator(name: *const c_char, overload: *const c_char, known: *mut bool, cuda: *mut bool) -> *mut c_char;
    #[cfg(test)]
    fn ringleader_note_operators() -> *mut c_char;
    #[cfg(test)]
    fn ringleader_noted_operators() -> *mut c_char;
    fn ringleader_stream(device: c_int, stream: *mut *mut c_void) -> *mut c_char;
    fn ringleader_free_stream(stream: *mut c_void);
    fn ringleader_event(stream: *const c_void, device: c_int, timed: bool, event: *mut *mut c_void) -> *mut c_char;
    fn ringleader_begin_after(event: *const c_void, stream: *const c_void, device: c_int) -> *mut c_char;
    fn ringleader_wait(event: *const c_void) -> *mut c_char;
    fn ringleader_happened(event: *const c_void, happened: *mut bool) -> *mut c_char;
    fn ringleader_elapsed(from: *const c_void, to: *const c_void, ms: *mut f64) -> *mut c_char;
    fn ringleader_free_event(event: *mut c_void);
    fn ringleader_copy(to: *mut C_tensor, from: *const C_tensor, stream: *const c_void) -> *mut c_char;
    fn ringleader_backward(
        root: *const C_tensor,
        slope: *const C_tensor,
        inputs: *const *const C_tensor,
        count: usize,
        gradients: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// The text of a message, which is freed.
fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: a string that ends in 0, which belongs to the caller from here on.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: it is not used any more.
    unsafe { ringleader_free_text(text) };
    Some(message)
}

fn check(problem: *mut c_char) -> Result<(), EngineError> {
    taken(problem).map_or(Ok(()), |message| Err(EngineError::Compute(message)))
}

/// The version of libtorch that this program was compiled against.
pub(crate) fn version() -> String {
    // SAFETY: a string that ends in 0, which lives as long as the program.
    unsafe { CStr::from_ptr(ringleader_version()) }.to_string_lossy().into_owned()
}

/// Sets what CUDA's libraries read from the environment. Must be called before other
/// threads start.
pub(crate) fn prepare_process() {
    // SAFETY: it changes the environment, which no other thread reads yet.
    unsafe { ringleader_prepare_process() }
}

/// How CUDA computes. This is the only place that decides it, for the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    /// Only kernels that give the same bits each time.
    pub(crate) deterministic: bool,
    /// Products of f32 may round their factors to TF32. libtorch's own default does so in
    /// convolutions.
    pub(crate) tf32: bool,
    /// cuDNN tries its kernels for each new shape and keeps the fastest one, which need
    /// not be the same one each time.
    pub(crate) benchmark: bool,
}

impl Arithmetic {
    /// What a run asks for.
    pub(crate) fn of(train: &TrainConfig) -> Self {
        Self { deterministic: train.reproducible, tf32: train.precision == Precision::Tf32, benchmark: !train.reproducible }
    }

    pub(crate) fn set(self) -> Result<(), EngineError> {
        // SAFETY: plain values.
        check(unsafe { ringleader_arithmetic(self.deterministic, self.tf32, self.benchmark) })
    }

    #[cfg(test)]
    pub(crate) fn current() -> Self {
        let (mut deterministic, mut tf32, mut benchmark) = (false, false, false);
        // SAFETY: three places that outlive the call.
        unsafe { ringleader_read_arithmetic(&raw mut deterministic, &raw mut tf32, &raw mut benchmark) };
        Self { deterministic, tf32, benchmark }
    }
}

/// Whether a CUDA device computes in bf16 itself.
pub(crate) fn has_bf16(device: usize) -> Result<bool, EngineError> {
    let mut has = false;
    // SAFETY: a place that outlives the call.
    check(unsafe { ringleader_has_bf16(device as c_int, &raw mut has) })?;
    Ok(has)
}

/// The gradients of `inputs` where that of `root` is `slope`. One that the root does not depend
/// on is undefined. The graph behind the root is gone after it.
pub(super) fn backward(root: &Tensor, slope: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EngineError> {
    let inputs: Vec<*const C_tensor> = inputs.iter().map(|input| input.as_ptr()).collect();
    let mut gradients = vec![null_mut(); inputs.len()];
    // SAFETY: valid tensors, and places for as many new ones, all of which outlive the call.
    check(unsafe { ringleader_backward(root.as_ptr(), slope.as_ptr(), inputs.as_ptr(), inputs.len(), gradients.as_mut_ptr()) })?;
    // SAFETY: tensors that nobody else owns.
    Ok(gradients.into_iter().map(|gradient| unsafe { Tensor::from_ptr(gradient) }).collect())
}

/// The operators that `work` calls on any thread: name and overload.
#[cfg(test)]
pub(super) fn operators_of<T>(work: impl FnOnce() -> T) -> (T, Vec<(String, String)>) {
    // SAFETY: nothing is passed.
    let noting = check(unsafe { ringleader_note_operators() });
    let result = work();
    // SAFETY: nothing is passed.
    let lines = taken(unsafe { ringleader_noted_operators() }).unwrap_or_default();
    assert!(noting.is_ok(), "{noting:?}");
    (result, lines.lines().filter_map(|line| line.split_once(' ')).map(|(name, overload)| (name.to_owned(), overload.to_owned())).collect())
}

/// Whether libtorch knows an operator, and whether that has a kernel for CUDA or is made of
/// others.
#[cfg(test)]
pub(super) fn operator(name: &str, overload: &str) -> (bool, bool) {
    let [name, overload] = [name, overload].map(|text| CString::new(text).unwrap_or_default());
    let (mut known, mut cuda) = (false, false);
    // SAFETY: two strings that end in 0, and two places, all of which outlive the call.
    let problem = check(unsafe { ringleader_operator(name.as_ptr(), overload.as_ptr(), &raw mut known, &raw mut cuda) });
    assert!(problem.is_ok(), "{problem:?}");
    (known, cuda)
}

/// A stream of a CUDA device beside the one that computes.
#[derive(Debug)]
pub(super) struct Stream {
    handle: *mut c_void,
    device: c_int,
}

// SAFETY: the handle is a plain value that names a stream; libtorch locks what is shared.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: usize) -> Result<Self, EngineError> {
        let (mut handle, device) = (null_mut(), device as c_int);
        // SAFETY: a place that outlives the call.
        check(unsafe { ringleader_stream(device, &raw mut handle) })?;
        Ok(Self { handle, device })
    }

    /// An event that happens when all that this stream was given is done.
    pub(super) fn event(&self) -> Result<Event, EngineError> {
        Event::on(self.handle, self.device, false)
    }

    /// What this stream is given from now on begins after the event.
    pub(super) fn begin_after(&self, event: &Event) -> Result<(), EngineError> {
        // SAFETY: both handles are valid.
        check(unsafe { ringleader_begin_after(event.handle, self.handle, self.device) })
    }

    /// Copies `from` to `to` on this stream, without waiting for it. Both must live, and
    /// be left alone, until then.
    pub(super) fn copy(&self, to: &Tensor, from: &Tensor) -> Result<(), EngineError> {
        // SAFETY: all handles are valid; a tensor's values may be changed by any handle.
        check(unsafe { ringleader_copy(to.as_ptr().cast_mut(), from.as_ptr(), self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `ringleader_stream`, and not used any more.
        unsafe { ringleader_free_stream(self.handle) }
    }
}

/// Happens when a CUDA device has done what it was given before.
#[derive(Debug)]
pub(super) struct Event {
    handle: *mut c_void,
    device: c_int,
}

// SAFETY: CUDA's events may be used by any thread.
unsafe impl Send for Event {}

impl Event {
    fn on(stream: *const c_void, device: c_int, timed: bool) -> Result<Self, EngineError> {
        let mut handle = null_mut();
        // SAFETY: a place that outlives the call, and a valid handle or none.
        check(unsafe { ringleader_event(stream, device, timed, &raw mut handle) })?;
        Ok(Self { handle, device })
    }

    /// Happens when what this thread has had the device compute is done.
    pub(super) fn of_computing(device: usize) -> Result<Self, EngineError> {
        Self::on(null(), device as c_int, false)
    }

    /// The same, for [`elapsed`](Self::elapsed).
    pub(super) fn timed(device: usize) -> Result<Self, EngineError> {
        Self::on(null(), device as c_int, true)
    }

    /// What this thread has the device compute from now on begins after the event.
    pub(super) fn compute_after(&self) -> Result<(), EngineError> {
        // SAFETY: a valid handle.
        check(unsafe { ringleader_begin_after(self.handle, null(), self.device) })
    }

    /// Waits, on this thread, until it has happened.
    pub(super) fn wait(&self) -> Result<(), EngineError> {
        // SAFETY: a valid handle.
        check(unsafe { ringleader_wait(self.handle) })
    }

    pub(super) fn has_happened(&self) -> Result<bool, EngineError> {
        let mut happened = false;
        // SAFETY: a valid handle, and a place that outlives the call.
        check(unsafe { ringleader_happened(self.handle, &raw mut happened) })?;
        Ok(happened)
    }

    /// Seconds from this timed event to a later one, both of which have happened.
    pub(super) fn elapsed(&self, later: &Self) -> Result<f64, EngineError> {
        let mut ms = 0.0;
        // SAFETY: valid handles, and a place that outlives the call.
        check(unsafe { ringleader_elapsed(self.handle, later.handle, &raw mut ms) })?;
        Ok(ms / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `ringleader_event`, and not used any more.
        unsafe { ringleader_free_event(self.handle) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_cuda_computes_with_is_what_the_run_asks_for() {
        let before = Arithmetic::current();
        let run = |reproducible, precision| Arithmetic::of(&TrainConfig { reproducible, precision, ..TrainConfig::default() });
        assert_eq!(run(true, Precision::F32), Arithmetic { deterministic: true, tf32: false, benchmark: false });
        assert_eq!(run(false, Precision::Bf16), Arithmetic { deterministic: false, tf32: false, benchmark: true });
        for arithmetic in [run(false, Precision::Tf32), run(true, Precision::Tf32), run(true, Precision::F32), run(false, Precision::F32)] {
            arithmetic.set().unwrap();
            assert_eq!(Arithmetic::current(), arithmetic);
        }
        before.set().unwrap();
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        if super::super::cuda_devices() == 0 {
            for problem in [Stream::new(0).map(drop), Event::of_computing(0).map(drop), has_bf16(0).map(drop)] {
                assert!(matches!(problem, Err(EngineError::Compute(text)) if !text.is_empty()));
            }
        }
    }
}
