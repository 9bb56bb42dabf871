//! Where the credentials of S3 come from, beside what the `object_store` crate reads
//! itself: the file that `aws configure` writes, and a plain word where there are none.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// Variables of which one is set where the environment itself has credentials, or says
/// how to get them.
const VARIABLES: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

/// The address at which virtual machines of AWS ask for their credentials.
const INSTANCE_METADATA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);
const METADATA_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The keys of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) key_id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
    pub(super) region: Option<String>,
}

/// The user's profile, if the environment has no credentials. The error says that there
/// are none anywhere.
pub(super) fn profile() -> Result<Option<Profile>, String> {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if VARIABLES.into_iter().any(set) {
        return Ok(None);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let file = |variable: &str, usual: &str| std::env::var_os(variable).map_or_else(|| home.join(usual), PathBuf::from);
    let name = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    let credentials = std::fs::read_to_string(file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")).unwrap_or_default();
    let config = std::fs::read_to_string(file("AWS_CONFIG_FILE", ".aws/config")).unwrap_or_default();
    if let Some(profile) = of_files(&credentials, &config, &name) {
        return Ok(Some(profile));
    }
    if TcpStream::connect_timeout(&INSTANCE_METADATA, METADATA_ANSWERS_WITHIN).is_ok() {
        return Ok(None);
    }
    Err(format!(
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write the profile `{name}` with `aws configure`, \
         or set AWS_SKIP_SIGNATURE=true for a public bucket"
    ))
}

/// A profile of the two files of the AWS command line. In the second one, sections of
/// profiles other than `default` are named `profile NAME`.
pub(super) fn of_files(credentials: &str, config: &str, name: &str) -> Option<Profile> {
    let mut values = section(config, &format!("profile {name}"));
    values.extend(section(config, name));
    values.extend(section(credentials, name));
    let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
    Some(Profile {
        key_id: take("aws_access_key_id")?,
        secret: take("aws_secret_access_key")?,
        token: take("aws_session_token"),
        region: take("region"),
    })
}

fn section(text: &str, name: &str) -> BTreeMap<String, String> {
    let header = |line: &str| line.strip_prefix('[').and_then(|rest| rest.split(']').next()).map(|name| name.trim().to_owned());
    let lines = text.lines().map(str::trim).skip_while(|line| header(line).as_deref() != Some(name)).skip(1);
    let lines = lines.take_while(|line| header(line).is_none()).filter(|line| !line.starts_with(['#', ';']));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect()
}
