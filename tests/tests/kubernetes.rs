//! deploy/kubernetes: what it makes is valid, fits together, and starts, is probed and ends as
//! a kubelet would do that. There is no cluster here.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_tests::python::Python;
use cluster_tests::scenario::free_port;
use cluster_tests::{Running, binary, join_line, project, until};
use serde_json::Value;
use tempfile::TempDir;

/// The resources of deploy/kubernetes. `None`, and a word about it, where what it takes is not here.
fn resources(folder: &Path, python: &Python, from: &Path) -> Option<Vec<Value>> {
    let made = match Command::new("kubectl").arg("kustomize").arg(from).output() {
        Ok(made) => made,
        Err(e) => {
            eprintln!("skipped: kubectl: {e}");
            return None;
        }
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let path = folder.join("made.yaml");
    std::fs::write(&path, made.stdout).unwrap_or_else(|e| panic!("{e}"));
    let text = python.run("kubernetes.py", &[&path]);
    Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

fn of<'a>(resources: &'a [Value], kind: &str) -> &'a Value {
    resources.iter().find(|resource| resource["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(text).collect()
}

#[test]
fn the_resources_are_valid_and_fit_together_and_the_coordinator_is_probed_and_ends() {
    let Some(python) = Python::with_kubernetes() else { return };
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let from = project().join("deploy/kubernetes");
    let Some(all) = resources(folder.path(), &python, &from) else { return };

    let (service, set, deployment) = (of(&all, "Service"), of(&all, "StatefulSet"), of(&all, "Deployment"));
    let (pod, worker_pod) = (&set["spec"]["template"], &deployment["spec"]["template"]);
    let (coordinator, worker) = (&pod["spec"]["containers"][0], &worker_pod["spec"]["containers"][0]);
    assert_eq!(
        service["spec"]["selector"],
        pod["metadata"]["labels"].as_object().map_or(Value::Null, |labels| {
            let name = "app.kubernetes.io/name";
            serde_json::json!({ name: labels[name] })
        })
    );
    let port = &service["spec"]["ports"][0];
    assert_eq!((&port["protocol"], &port["targetPort"]), (&"UDP".into(), &coordinator["ports"][0]["name"]));
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], coordinator["volumeMounts"][0]["name"]);
    let configured = &of(&all, "ConfigMap")["metadata"]["name"];
    assert_eq!(&pod["spec"]["volumes"][0]["configMap"]["name"], configured, "the config's hash is in its name");
    assert_eq!(worker["resources"]["limits"]["nvidia.com/gpu"], "1");
    let address = texts(&worker["command"])[2];
    assert_eq!(address, format!("{}:{}", text(&service["metadata"]["name"]), port["port"]));
    for pod in [pod, worker_pod] {
        assert!(pod["spec"]["terminationGracePeriodSeconds"].as_u64().is_some_and(|seconds| seconds >= 120));
    }

    // The worker takes these arguments: it gets as far as the token that it is given.
    let wrong = folder.path().join("token");
    std::fs::write(&wrong, "no token\n").unwrap_or_else(|e| panic!("{e}"));
    let replaced =
        |argument: &str| argument.replace("/etc/ringleader/token", &wrong.display().to_string()).replace("$(POD_IP)", "127.0.0.1");
    let line: Vec<String> = [&texts(&worker["command"])[1..], &texts(&worker["args"])].concat().into_iter().map(replaced).collect();
    let refused = Running::start("worker", &line.iter().map(String::as_str).collect::<Vec<_>>()).wait();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("token"), "{}", refused.stderr);

    // The coordinator's container, with its folders and ports elsewhere.
    let http = free_port().to_string();
    let here = |words: &Value| -> Vec<String> {
        let moved = |word: &str| {
            let word = word.replace("/var/lib/ringleader", &folder.path().join("state").display().to_string());
            word.replace("/etc/ringleader", &from.display().to_string()).replace("7475", &http).replace("0.0.0.0:7474", "127.0.0.1:0")
        };
        texts(words).into_iter().map(moved).collect()
    };
    let (start, probe) =
        ([here(&coordinator["command"]), here(&coordinator["args"])].concat(), here(&coordinator["readinessProbe"]["exec"]["command"]));
    let ready = || Command::new(&probe[0]).args(&probe[1..]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(!ready(), "nobody answers yet");
    let binaries = binary("coordinator").parent().map(Path::to_owned).unwrap_or_default();
    let mut path = OsString::from(binaries);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(&start[0]);
    command.args(&start[1..]).env("PATH", path).env(text(&coordinator["env"][0]["name"]), "1").current_dir(project());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = folder.path().join("state/runs/run");
    let mut running = Running::spawned(command.spawn().unwrap_or_else(|e| panic!("{e}")), run.clone());
    until("answer to the probe", Duration::from_secs(20), || ready().then_some(()));
    let (address, token) = join_line(&run);
    let port = address.strip_prefix("ringleader-coordinator:").unwrap_or_else(|| panic!("{address}"));
    let here = format!("127.0.0.1:{port}");
    let worker = Running::start("worker", &["join", &here, "--token", &token]);
    running.wait_for_steps(1);
    running.signal(libc::SIGTERM);
    running.wait().succeeded();
    worker.wait().succeeded();
    assert!(!ready(), "it has ended");
}
