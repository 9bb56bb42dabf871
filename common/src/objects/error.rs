//! What can go wrong with objects.

/// Why an object could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("`{url}` {problem}")]
    Address { url: String, problem: String },
    #[error("`{url}` does not exist")]
    NotFound { url: String },
    #[error("`{url}` was replaced after it was opened: start again to use what is there now")]
    Replaced { url: String },
    #[error("access to `{url}` was refused: {cause}; check the credentials, and what they allow")]
    Refused { url: String, cause: String },
    #[error("could not {action} `{url}`: {cause}")]
    Failed { action: &'static str, url: String, cause: String },
}
