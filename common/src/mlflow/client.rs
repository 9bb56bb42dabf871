//! Requests to an MLflow server (MLflow's REST API, version 2.0).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::entry::{End, Metric, Pairs, now_ms};
use crate::files::replace;

/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of an answer that are read.
const ANSWER: u64 = 1 << 20;

/// The most parameters or tags of a request, and letters of a value: older servers refuse
/// longer ones.
const PAIRS: usize = 100;
const LETTERS: usize = 500;

/// The file of the run directory that says which run of which server it is.
const FILE: &str = "mlflow.json";

/// A server, and the experiment in which runs are recorded there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Server {
    url: String,
    experiment: String,
    /// The header that says who asks.
    authorization: Option<String>,
}

impl Server {
    /// What the environment says by the names that MLflow's own clients read; none if it
    /// names no server.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Result<Self, String>> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let url = set("MLFLOW_TRACKING_URI")?.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Some(Err(format!("MLFLOW_TRACKING_URI is `{url}`: only a server is written to, http://HOST:PORT or https://HOST")));
        }
        let basic = |user: String| {
            let password = set("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
            format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
        };
        let authorization = match (set("MLFLOW_TRACKING_USERNAME"), set("MLFLOW_TRACKING_TOKEN")) {
            (Some(user), _) => Some(basic(user)),
            (None, token) => token.map(|token| format!("Bearer {token}")),
        };
        let experiment = set("MLFLOW_EXPERIMENT_NAME").unwrap_or_else(|| "Default".to_owned());
        Some(Ok(Self { url, experiment, authorization }))
    }
}

/// What the server is told when the record begins.
pub(super) struct About {
    pub(super) name: String,
    /// The config's.
    pub(super) values: BTreeMap<String, toml::Value>,
    pub(super) tags: Pairs,
    pub(super) run_dir: PathBuf,
}

/// A run of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    tracking_uri: String,
    run_id: String,
    /// Where the server itself keeps a run's files; empty if it does not.
    artifacts: String,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) problem: String,
    /// The server would answer the same again.
    pub(super) is_final: bool,
    status: u16,
}

pub(super) struct Client {
    agent: ureq::Agent,
    server: Server,
}

impl Client {
    pub(super) fn new(server: Server) -> Self {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = ureq::tls::TlsConfig::builder().unversioned_rustls_crypto_provider(provider.into()).build();
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).tls_config(tls);
        Self { agent: config.build().into(), server }
    }

    pub(super) fn url(&self) -> &str {
        &self.server.url
    }

    /// Begins the record of a run, or goes on with that of the run directory.
    pub(super) fn begin(&self, about: &About) -> Result<Run, Failure> {
        let file = about.run_dir.join(FILE);
        let kept = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Run>(&bytes).ok());
        if let Some(run) = kept.filter(|run| run.tracking_uri == self.server.url) {
            match self.update(&run, json!({ "status": "RUNNING" })) {
                Ok(()) => return Ok(run),
                // Somebody has removed it there.
                Err(failure) if failure.status == 404 || failure.status == 400 => {}
                Err(failure) => return Err(failure),
            }
        }
        let request = json!({
            "experiment_id": self.experiment()?,
            "run_name": about.name,
            "start_time": now_ms(),
            "tags": pairs(&about.tags),
        });
        let info = self.post("runs/create", &request)?["run"]["info"].take();
        let run = Run {
            tracking_uri: self.server.url.clone(),
            run_id: text(&info["run_id"])?,
            artifacts: kept_by_server(info["artifact_uri"].as_str().unwrap_or_default()),
        };
        let value = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let params: Pairs = about.values.iter().map(|(key, v)| (key.clone(), value(v))).collect();
        for params in params.chunks(PAIRS) {
            self.post("runs/log-batch", &json!({ "run_id": run.run_id, "params": pairs(params) }))?;
        }
        let content = serde_json::to_vec(&run).unwrap_or_default();
        if let Err(e) = replace(&file, &content) {
            tracing::debug!("a resumed run will be another one for MLflow: could not write `{}`: {e}", file.display());
        }
        Ok(run)
    }

    /// The identifier of the experiment, which is made if there is none of its name.
    fn experiment(&self) -> Result<String, Failure> {
        let name = &self.server.experiment;
        let by_name = || {
            let url = self.place("mlflow/experiments/get-by-name");
            self.answered(self.asking(self.agent.get(url).query("experiment_name", name)).call())
        };
        match by_name() {
            Err(failure) if failure.status == 404 => match self.post("experiments/create", &json!({ "name": name })) {
                Ok(made) => text(&made["experiment_id"]),
                // Another run has made it meanwhile.
                Err(failure) if failure.status == 400 => text(&by_name()?["experiment"]["experiment_id"]),
                Err(failure) => Err(failure),
            },
            found => text(&found?["experiment"]["experiment_id"]),
        }
    }

    pub(super) fn log(&self, run: &Run, metrics: &[Metric]) -> Result<(), Failure> {
        // As protobuf's JSON has numbers that JSON lacks.
        let value = |value: f64| match value {
            v if v.is_nan() => json!("NaN"),
            v if v.is_infinite() => json!(if v > 0.0 { "Infinity" } else { "-Infinity" }),
            v => json!(v),
        };
        let metric = |m: &Metric| json!({ "key": m.key, "value": value(m.value), "timestamp": m.timestamp, "step": m.step });
        let metrics: Vec<Value> = metrics.iter().map(metric).collect();
        self.post("runs/log-batch", &json!({ "run_id": run.run_id, "metrics": metrics })).map(|_| ())
    }

    pub(super) fn tag(&self, run: &Run, tags: &Pairs) -> Result<(), Failure> {
        self.post("runs/log-batch", &json!({ "run_id": run.run_id, "tags": pairs(tags) })).map(|_| ())
    }

    /// Stores a file of the run, if the server keeps such files itself.
    pub(super) fn artifact(&self, run: &Run, name: &str, content: &[u8]) -> Result<(), Failure> {
        if run.artifacts.is_empty() {
            return Ok(());
        }
        let url = self.place(&format!("mlflow-artifacts/artifacts/{}/{name}", run.artifacts));
        self.answered(self.asking(self.agent.put(url)).send(content)).map(|_| ())
    }

    pub(super) fn end(&self, run: &Run, end: End, at: u64) -> Result<(), Failure> {
        let status = match end {
            End::Finished => "FINISHED",
            End::Killed => "KILLED",
            End::Failed => "FAILED",
        };
        self.update(run, json!({ "status": status, "end_time": at }))
    }

    fn update(&self, run: &Run, mut change: Value) -> Result<(), Failure> {
        change["run_id"] = json!(run.run_id);
        self.post("runs/update", &change).map(|_| ())
    }

    fn post(&self, what: &str, request: &Value) -> Result<Value, Failure> {
        let sending = self.asking(self.agent.post(self.place(&format!("mlflow/{what}"))).header("content-type", "application/json"));
        self.answered(sending.send(request.to_string()))
    }

    fn place(&self, path: &str) -> String {
        format!("{}/api/2.0/{path}", self.server.url)
    }

    fn asking<Body>(&self, request: ureq::RequestBuilder<Body>) -> ureq::RequestBuilder<Body> {
        match &self.server.authorization {
            Some(who) => request.header("authorization", who),
            None => request,
        }
    }

    fn answered(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value, Failure> {
        let failed = |e: ureq::Error| Failure { problem: e.to_string(), is_final: false, status: 0 };
        let mut response = response.map_err(failed)?;
        let status = response.status().as_u16();
        let answer = response.body_mut().with_config().limit(ANSWER).read_to_string().map_err(failed)?;
        if (200..300).contains(&status) {
            return Ok(serde_json::from_str(&answer).unwrap_or_default());
        }
        let said = serde_json::from_str::<Value>(&answer).ok().and_then(|answer| answer["message"].as_str().map(str::to_owned));
        let said: String = said.unwrap_or(answer).chars().take(LETTERS).collect();
        let advice = match status {
            401 | 403 => "; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            404 => "; MLFLOW_TRACKING_URI should be the address of an MLflow server",
            _ => "",
        };
        let problem = format!("it answers {status}: {}{advice}", said.trim());
        Err(Failure { problem, is_final: (400..500).contains(&status) && !matches!(status, 408 | 429), status })
    }
}

/// The path under which the server takes a run's files, of the address that it says for
/// them; empty if they lie where only a client's own access reaches.
fn kept_by_server(address: &str) -> String {
    let Some(path) = address.strip_prefix("mlflow-artifacts:") else { return String::new() };
    // With a server's name or without one: `//HOST/PATH` or `/PATH`.
    let path = path.strip_prefix("//").map_or(path, |rest| rest.split_once('/').map_or("", |(_, path)| path));
    path.trim_matches('/').to_owned()
}

fn pairs(of: &[(String, String)]) -> Vec<Value> {
    let short = |value: &str| value.chars().take(LETTERS).collect::<String>();
    of.iter().map(|(key, value)| json!({ "key": key, "value": short(value) })).collect()
}

fn text(of: &Value) -> Result<String, Failure> {
    of.as_str().map(str::to_owned).ok_or_else(|| Failure {
        problem: "its answers are not those of an MLflow server: MLFLOW_TRACKING_URI should be the address of one".to_owned(),
        is_final: true,
        status: 0,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_server_experiment_and_who_asks() {
        let of = |set: &[(&str, &str)]| Server::of(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()));
        assert!(of(&[("MLFLOW_EXPERIMENT_NAME", "e")]).is_none() && of(&[("MLFLOW_TRACKING_URI", "")]).is_none());
        let plain = of(&[("MLFLOW_TRACKING_URI", "http://h:5000/")]).unwrap().unwrap();
        assert_eq!((plain.url.as_str(), plain.experiment.as_str(), plain.authorization), ("http://h:5000", "Default", None));
        let user = [("MLFLOW_TRACKING_URI", "https://h"), ("MLFLOW_TRACKING_USERNAME", "u"), ("MLFLOW_TRACKING_PASSWORD", "p")];
        assert_eq!(of(&user).unwrap().unwrap().authorization.unwrap(), "Basic dTpw");
        let token = [("MLFLOW_TRACKING_URI", "https://h"), ("MLFLOW_TRACKING_TOKEN", "t"), ("MLFLOW_EXPERIMENT_NAME", "e")];
        let token = of(&token).unwrap().unwrap();
        assert_eq!((token.authorization.unwrap().as_str(), token.experiment.as_str()), ("Bearer t", "e"));
        assert!(of(&[("MLFLOW_TRACKING_URI", "sqlite:///a.db")]).unwrap().unwrap_err().contains("only a server"));
    }

    #[test]
    fn files_go_to_a_server_that_keeps_them() {
        let path = "1/2f/artifacts";
        for address in ["mlflow-artifacts:/1/2f/artifacts", "mlflow-artifacts://host:5000/1/2f/artifacts"] {
            assert_eq!(kept_by_server(address), path);
        }
        assert_eq!(kept_by_server("s3://bucket/1/2f/artifacts"), "");
    }
}
