//! The chart, installed by Helm into a real API server, and what a kubelet and kube-proxy would make of
//! it: the real binary with the arguments, the policy and the service account of the Deployment, behind
//! the Service's own address.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::{
    enforce::{hpa, node_pool},
    harness::{
        Answer, Assets, Cluster, Gangplank, Helm, SOON, client, clock::Clock, eventually,
        leash::Signal, service::Service,
    },
    serve::get,
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// The namespace and the name of the release.
pub(crate) const NAMESPACE: &str = "gangplank-system";
pub(crate) const NAME: &str = "gangplank";

pub(crate) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/gangplank")
}

/// One pod of the Deployment.
pub(crate) struct Pod {
    pub(crate) gangplank: Gangplank,
    policy: PathBuf,
}

/// A release and the pods that run.
pub(crate) struct Release {
    // Pods end before the API server does.
    pub(crate) pods: Vec<Pod>,
    pub(crate) service: Service,
    pub(crate) helm: Helm,
    pub(crate) cluster: Cluster,
    /// Between the pods and the API server.
    pub(crate) relay: Service,
    /// What the pods take for the time.
    pub(crate) clock: Clock,
    account: PathBuf,
    started: usize,
}

impl Release {
    /// Installs the chart into a cluster of its own and starts as many pods as it asks for.
    pub(crate) fn install(values: &Value) -> Result<Self> {
        let cluster = Cluster::start(&Assets::find()?)?;
        cluster.install_crds()?;
        cluster.install_crds_of("crds-openreports")?;
        let helm = Helm::of(&cluster)?;
        helm_of(&helm, "install", values, &["--create-namespace"])?.success()?;
        let kubectl = cluster.kubectl().in_namespace(NAMESPACE);
        let service = kubectl.get(&format!("service/{NAME}"))?;
        let ip = service["spec"]["clusterIP"]
            .as_str()
            .context("an address")?;
        let port = &service["spec"]["ports"][0]["port"];
        let service = Service::listen(format!("{ip}:{port}").parse()?)?;
        let relay = Service::listen("127.0.0.1:0".parse()?)?;
        relay.lead_to(vec![cluster.apiserver_address()]);
        let account = cluster.kubeconfig_of(NAMESPACE, NAME, relay.address())?;
        let clock = Clock::new(&cluster.dir().join("clock"))?;
        let mut release = Self {
            pods: Vec::new(),
            service,
            helm,
            cluster,
            relay,
            clock,
            account,
            started: 0,
        };
        let replicas = release.deployment()?["spec"]["replicas"]
            .as_u64()
            .context("replicas")?;
        for _ in 0..replicas {
            release.start()?;
        }
        release.asked()?;
        Ok(release)
    }

    /// `helm upgrade`.
    pub(crate) fn upgrade(&self, values: &Value) -> Result<Answer> {
        helm_of(&self.helm, "upgrade", values, &[])
    }

    /// What a kubelet mounts: the policy of the ConfigMap, as it is now. Waits until every pod has taken it.
    pub(crate) fn sync_policy(&self) -> Result<()> {
        let text = self.policy()?;
        for index in 0..self.pods.len() {
            let before = self.readyz(index, "policy:")?;
            fs::write(&self.pods[index].policy, &text)?;
            eventually("another policy is in force", SOON, || {
                let now = self.readyz(index, "policy:").ok()?;
                (now != before && now.starts_with("policy: ok")).then_some(())
            })?;
        }
        Ok(())
    }

    fn policy(&self) -> Result<String> {
        let kubectl = self.cluster.kubectl().in_namespace(NAMESPACE);
        let map = kubectl.get(&format!("configmap/{NAME}-policy"))?;
        let text = map["data"]["policy.yaml"].as_str().context("a policy")?;
        Ok(text.to_owned())
    }

    pub(crate) fn deployment(&self) -> Result<Value> {
        let kubectl = self.cluster.kubectl().in_namespace(NAMESPACE);
        kubectl.get(&format!("deployment/{NAME}"))
    }

    /// Starts a pod and lets the Service lead to it when it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.started += 1;
        let folder = self.cluster.dir().join(format!("pod-{}", self.started));
        fs::create_dir_all(&folder)?;
        let policy = folder.join("policy.yaml");
        fs::write(&policy, self.policy()?)?;
        let deployment = self.deployment()?;
        let args = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
        let mut args: Vec<String> = serde_json::from_value(args.clone())?;
        ensure!(args.remove(0) == "serve", "{args:?}");
        // A pod has its addresses, its mounts and its log to itself.
        args.retain(|arg| {
            let own = ["--listen=", "--admin-listen=", "--log-format="];
            !own.iter().any(|flag| arg.starts_with(flag))
        });
        for arg in &mut args {
            if arg.starts_with("--policy=") {
                *arg = format!("--policy={}", policy.display());
            }
        }
        args.push(format!("--kubeconfig={}", self.account.display()));
        let clock = self.clock.environment();
        let gangplank = Gangplank::start_in(Path::new(BINARY), &args, &clock)?;
        self.pods.push(Pod { gangplank, policy });
        self.lead();
        Ok(())
    }

    /// Lets the Service lead to the pods that run.
    pub(crate) fn lead(&self) {
        let addresses = self.pods.iter().map(|pod| pod.gangplank.webhook());
        self.service.lead_to(addresses.collect());
    }

    /// Deletes a pod: the Service leads away from it while it serves on, and it ends by itself.
    pub(crate) fn stop(&mut self, index: usize) -> Result<()> {
        let mut pod = self.pods.remove(index);
        pod.gangplank.signal(Signal::Terminate)?;
        self.lead();
        let status = pod.gangplank.wait(SOON)?;
        ensure!(status.success(), "{status}: {}", pod.gangplank.log());
        Ok(())
    }

    /// Ends a pod as a failing node would. The Service leads there until somebody notices.
    pub(crate) fn kill(&mut self, index: usize) -> Result<()> {
        self.pods.remove(index).gangplank.kill()?;
        Ok(())
    }

    /// Waits until the API server asks: what is wrong is denied, what is silent is filled.
    pub(crate) fn asked(&self) -> Result<()> {
        eventually("the API server asks Gangplank", SOON, || {
            let dry = |manifest: &Value| {
                let args = ["create", "--dry-run=server", "--filename=-"];
                let kubectl = self.cluster.kubectl();
                kubectl.run(&args, Some(&manifest.to_string())).ok()
            };
            let denied = dry(&hpa("probe", BAD))?;
            let filled = dry(&node_pool("probe", None))?;
            let rule = denied.stderr.contains("gpu-utilization-signal");
            (rule && !filled.warnings().is_empty()).then_some(())
        })
    }

    /// A line of `/readyz?verbose` of a pod that begins so.
    pub(crate) fn readyz(&self, index: usize, beginning: &str) -> Result<String> {
        let (_, text) = get(&self.pods[index].gangplank, "/readyz?verbose")?;
        let line = text.lines().find(|line| line.starts_with(beginning));
        Ok(line
            .with_context(|| format!("no {beginning} in {text}"))?
            .to_owned())
    }
}

/// `helm <verb>` of the chart with these values.
fn helm_of(helm: &Helm, verb: &str, values: &Value, more: &[&str]) -> Result<Answer> {
    let chart = chart();
    let chart = chart.to_str().context("a path of letters")?;
    // Not 443: whoever tests need not be root.
    let mut all = json!({"service": {"port": 8443}, "shutdownDelay": "2s"});
    let given = values.as_object().context("values")?.clone();
    all.as_object_mut().context("values")?.extend(given);
    let all: Vec<String> = all
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(key, value)| ["--set-json".to_owned(), format!("{key}={value}")])
        .collect();
    let mut args = vec![verb, NAME, chart, "--namespace", NAMESPACE];
    args.extend(all.iter().map(String::as_str));
    args.extend(more);
    helm.run(&args)
}

/// A signal that is denied, and one that is not.
pub(crate) const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";
pub(crate) const GOOD: &str = "vllm:num_requests_waiting";

/// Writes that go on, one after the other, until they are ended: objects that have to be taken, denied
/// and filled.
pub(crate) struct Writes {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    writer: Option<JoinHandle<Result<Vec<String>>>>,
    kubeconfig: PathBuf,
    namespace: String,
}

impl Writes {
    /// Begins to write.
    pub(crate) fn begin(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.namespace("writes")?.namespace().to_owned();
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let kubeconfig = cluster.kubeconfig().to_owned();
        let thread = {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let (kubeconfig, namespace) = (kubeconfig.clone(), namespace.clone());
            thread::spawn(move || {
                runtime()?.block_on(async {
                    let client = client(&kubeconfig).await?;
                    let mut wrong = Vec::new();
                    for turn in 0.. {
                        if stop.load(Ordering::Acquire) {
                            break;
                        }
                        if let Err(error) = write(&client, &namespace, turn).await {
                            wrong.push(format!("write {turn}: {error:#}"));
                        }
                        done.fetch_add(1, Ordering::AcqRel);
                    }
                    Ok(wrong)
                })
            })
        };
        let writes = Self {
            stop,
            done,
            writer: Some(thread),
            kubeconfig,
            namespace,
        };
        writes.more(9)?;
        Ok(writes)
    }

    /// Waits until that many more writes have been answered.
    pub(crate) fn more(&self, count: usize) -> Result<()> {
        let goal = self.done.load(Ordering::Acquire) + count;
        eventually("more writes are answered", SOON, || {
            (self.done.load(Ordering::Acquire) >= goal).then_some(())
        })
    }

    /// Ends them. What was answered wrongly, and how many there were in all; what was taken is all there.
    pub(crate) fn end(mut self) -> Result<(Vec<String>, usize)> {
        self.stop.store(true, Ordering::Release);
        let writer = self.writer.take().context("a writer")?;
        let wrong = writer.join().ok().context("the writer panicked")??;
        let count = self.done.load(Ordering::Acquire);
        let kept = runtime()?.block_on(async {
            let client = client(&self.kubeconfig).await?;
            let held = api(&client, &self.namespace, HPA)
                .list(&ListParams::default())
                .await?;
            anyhow::Ok(held.items.len())
        })?;
        let expected = (0..count).filter(|turn| turn % 3 == 0).count();
        let lost = expected.saturating_sub(wrong.len());
        let let_in = wrong.iter().filter(|text| text.contains("let in")).count();
        ensure!(
            kept >= lost && kept <= expected + let_in,
            "{kept} of {expected} objects are there\n{}",
            wrong.join("\n")
        );
        Ok((wrong, count))
    }

    /// As [`Writes::end`], where the API server may have failed to ask, or may not have been there; it may
    /// not have answered anything wrongly.
    pub(crate) fn end_refused_at_most(self) -> Result<(usize, usize)> {
        let (wrong, count) = self.end()?;
        let let_in = wrong.iter().find(|text| text.contains("let in"));
        ensure!(let_in.is_none(), "{let_in:?}");
        Ok((wrong.len(), count))
    }

    /// As [`Writes::end`], where nothing may have gone wrong.
    pub(crate) fn end_well(self) -> Result<usize> {
        let (wrong, count) = self.end()?;
        ensure!(
            wrong.is_empty(),
            "{} of {count} writes went wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        Ok(count)
    }
}

const HPA: (&str, &str, &str) = ("autoscaling", "v2", "HorizontalPodAutoscaler");
const POOL: (&str, &str, &str) = ("karpenter.sh", "v1", "NodePool");

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    Ok(runtime.enable_all().build()?)
}

fn api(
    client: &Client,
    namespace: &str,
    (group, version, kind): (&str, &str, &str),
) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

/// One write, and whether it was answered rightly: the third of them are taken, denied and filled.
async fn write(client: &Client, namespace: &str, turn: usize) -> Result<()> {
    let params = PostParams::default();
    let object = |value: Value| serde_json::from_value::<DynamicObject>(value);
    match turn % 3 {
        0 => {
            let good = object(hpa(&format!("good-{turn}"), GOOD))?;
            api(client, namespace, HPA).create(&params, &good).await?;
        }
        1 => {
            let bad = object(hpa(&format!("bad-{turn}"), BAD))?;
            match api(client, namespace, HPA).create(&params, &bad).await {
                Ok(_) => anyhow::bail!("what is wrong was let in"),
                Err(kube::Error::Api(status))
                    if status.code == 403 && status.message.contains("gpu-utilization-signal") => {}
                Err(error) => return Err(error.into()),
            }
        }
        _ => {
            let dry = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            let silent = object(node_pool(&format!("{namespace}-{turn}"), None))?;
            let answer = api(client, "", POOL).create(&dry, &silent).await?;
            let policy = answer.data.pointer("/spec/disruption/consolidationPolicy");
            ensure!(
                policy.is_some_and(|policy| policy == "WhenEmpty"),
                "not filled: {policy:?}"
            );
        }
    }
    Ok(())
}
