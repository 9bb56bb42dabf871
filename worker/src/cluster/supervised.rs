//! A process that ends with the process that started it.

use anyhow::Result;
use common::ui::exit;

/// Ends this process when stdin closes. The launcher holds the other end of the pipe
/// and never writes to it again, so the pipe closes when the launcher ends.
pub(crate) fn end_with_stdin() -> Result<()> {
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(|| {
        let mut rest = [0; 64];
        while matches!(std::io::Read::read(&mut std::io::stdin(), &mut rest), Ok(1..)) {}
        exit(1);
    })?;
    Ok(())
}
