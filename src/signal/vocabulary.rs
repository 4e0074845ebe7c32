//! What a name says by the words it is made of, for names that no catalogue row knows: adapters,
//! recording rules and dashboards rename metrics freely.

use std::collections::BTreeSet;

use super::{Class, Name};
use crate::catalog::metrics::{Meaning, MetricCatalog};

const DEVICE: &[&str] = &[
    "gpu",
    "gpus",
    "vgpu",
    "vgpus",
    "dcgm",
    "nvidia",
    "nvml",
    "cuda",
    "rocm",
    "amdgpu",
    "xpu",
    "xpus",
    "xpum",
    "npu",
    "npus",
    "tpu",
    "tpus",
    "hpu",
    "hpus",
    "accelerator",
    "accelerators",
    "neuron",
    "neuroncore",
    "neuroncores",
    "neurondevice",
    "habana",
    "habanalabs",
    "gaudi",
    "ascend",
    "vram",
    "tensorcore",
    "a100",
    "h100",
    "h200",
    "b200",
    "gb200",
    "l40s",
    "mi300x",
];

/// Words that tell how busy a device is and nothing else.
const BUSY: &[&str] = &[
    "util",
    "utils",
    "utilization",
    "utilisation",
    "utilized",
    "utilised",
    "duty",
    "dutycycle",
    "occupancy",
    "busy",
    "activity",
];

/// Words that tell how much of something is taken: of the device, unless the name speaks of work.
const TAKEN: &[&str] = &[
    "used",
    "usage",
    "use",
    "active",
    "load",
    "idle",
    "saturation",
    "consumption",
    "compute",
];

const MEMORY: &[&str] = &[
    "mem",
    "memory",
    "vram",
    "fb",
    "framebuffer",
    "hbm",
    "gram",
    "dram",
    "gtt",
    "bar1",
];

const TRAFFIC: &[&str] = &["bandwidth", "membw", "umc", "copy"];

const HEAT: &[&str] = &[
    "power",
    "watt",
    "watts",
    "milliwatts",
    "energy",
    "joules",
    "temp",
    "temperature",
    "celsius",
    "thermal",
    "clock",
    "clocks",
    "fan",
    "throttle",
];

const FAULT: &[&str] = &[
    "xid",
    "ecc",
    "retired",
    "remap",
    "remapped",
    "error",
    "errors",
    "health",
    "replay",
    "license",
    "uncorrectable",
];

const LINK: &[&str] = &["nvlink", "pcie", "xgmi"];

const WORK: &[&str] = &[
    "request",
    "requests",
    "req",
    "reqs",
    "queue",
    "queues",
    "queued",
    "waiting",
    "wait",
    "pending",
    "backlog",
    "latency",
    "ttft",
    "tpot",
    "itl",
    "e2e",
    "token",
    "tokens",
    "job",
    "jobs",
    "goodput",
    "replica",
    "replicas",
    "throughput",
    "rps",
    "qps",
    "concurrency",
    "concurrent",
    "inflight",
    "batch",
    "batches",
    "slo",
    "session",
    "sessions",
    "duration",
    "task",
    "tasks",
    "message",
    "messages",
    "slot",
    "slots",
    "connections",
    "streams",
];

/// What a measure belongs to when it stands right behind: `cpu_utilization` is the processor's.
const OWNER: &[&str] = &[
    "queue", "queues", "batch", "slot", "slots", "token", "tokens", "cpu", "host", "disk",
    "network", "cache",
];

const HANDED_OUT: &[&str] = &[
    "request",
    "requests",
    "requested",
    "limit",
    "limits",
    "allocated",
    "allocatable",
    "allocation",
    "capacity",
    "quota",
    "available",
    "unreserved",
    "reserved",
    "free",
];

const SIZE: &[&str] = &["total", "size", "capacity", "limit"];

const UNIT: &[&str] = &[
    "bytes",
    "byte",
    "kb",
    "mb",
    "gb",
    "kib",
    "mib",
    "gib",
    "mebibytes",
    "gibibytes",
    "ratio",
    "percent",
    "perc",
    "pct",
    "percentage",
    "count",
    "total",
    "avg",
    "average",
    "mean",
    "max",
    "min",
    "sum",
    "current",
    "value",
    "p50",
    "p90",
    "p95",
    "p99",
];

/// Aggregates: `gpu_avg` can only be the average of what a GPU does.
const AGGREGATE: &[&str] = &[
    "avg",
    "average",
    "mean",
    "max",
    "min",
    "median",
    "p50",
    "p90",
    "p95",
    "p99",
    "percent",
    "perc",
    "pct",
    "percentage",
    "ratio",
];

const NUMBER: &[&str] = &[
    "count",
    "num",
    "number",
    "total",
    "info",
    "nodes",
    "devices",
    "available",
    "free",
];

/// Words that speak of things to be counted.
const SEVERAL: &[&str] = &[
    "gpus",
    "npus",
    "tpus",
    "count",
    "num",
    "number",
    "nodes",
    "devices",
    "worker",
    "workers",
    "server",
    "servers",
    "instances",
];

fn among(list: &[&str], word: &str) -> bool {
    list.contains(&word)
}

/// Whether a word names an accelerator, with or without its number (`gpu0`).
pub(super) fn is_device(word: &str) -> bool {
    // None is shorter, and most words of hostile queries are.
    if word.len() < 3 {
        return false;
    }
    among(DEVICE, word) || among(DEVICE, word.trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// An RE2 expression that every name with a match may be denied for: one that has a word for a device in it,
/// or that the catalogue knows for something that no autoscaler should go by.
pub(crate) fn pattern(catalog: &MetricCatalog) -> String {
    let covered = |text: &str, by: &str| text.len() > by.len() && text.contains(by);
    let mut parts: BTreeSet<String> = DEVICE
        .iter()
        .filter(|word| !DEVICE.iter().any(|other| covered(word, other)))
        .map(|word| (*word).to_owned())
        .collect();
    let denied = |meaning: Meaning| {
        matches!(
            meaning.class(),
            Class::Utilization | Class::Memory | Class::PowerThermal | Class::DeviceOther
        )
    };
    for (name, _) in catalog.names().filter(|(_, meaning)| denied(*meaning)) {
        let name = name.to_lowercase();
        if DEVICE.iter().any(|word| name.contains(word)) {
            continue;
        }
        let pieces = name
            .split('*')
            .map(|piece| Name::new(piece).words().join("[^a-z0-9]*"));
        parts.insert(pieces.collect::<Vec<_>>().join(".*"));
    }
    format!("(?i){}", parts.into_iter().collect::<Vec<_>>().join("|"))
}

fn is_measure(word: &str) -> bool {
    [BUSY, TAKEN, MEMORY, TRAFFIC, HEAT]
        .iter()
        .any(|list| among(list, word))
}

/// What the words mean; None where they speak of no device, or of work done on one.
pub(super) fn meaning(words: &[String]) -> Option<Meaning> {
    if !words.iter().any(|word| may_speak(word)) {
        return None;
    }
    let (rest, cache) = without_cache_phrases(&unglued(words));
    if !rest.iter().any(|word| is_device(word)) {
        return cache.then_some(Meaning::KvUse);
    }

    // The measures that belong to the device, and whether others belong to something else.
    let mut measures: Vec<&str> = Vec::new();
    let mut owned = false;
    let mut owner_before = false;
    for word in &rest {
        let measure = is_measure(word);
        if measure && !owner_before {
            measures.push(word);
        }
        owned |= measure && owner_before;
        // `host_memory_usage`: the usage is of the memory that is the host's.
        owner_before = among(OWNER, word) || measure && owner_before;
    }
    let has = |list: &[&str]| measures.iter().any(|word| among(list, word));
    let says = |list: &[&str]| rest.iter().any(|word| among(list, word));
    let busy = has(BUSY);
    let used = busy || measures.iter().any(|word| among(&["used", "usage"], word));
    let head = rest
        .iter()
        .rev()
        .map(String::as_str)
        .find(|word| !among(UNIT, word))
        .unwrap_or("");
    let last = rest.last().map_or("", String::as_str);
    let memory = has(MEMORY);

    let handed_out =
        among(HANDED_OUT, head) && !(memory && among(&["available", "free", "reserved"], head));
    if handed_out && !used {
        return Some(Meaning::Allocation);
    }
    if has(HEAT) {
        return Some(Meaning::PowerThermal);
    }
    if says(FAULT) && !used {
        return Some(Meaning::Health);
    }
    if says(LINK) && !busy {
        return Some(Meaning::Interconnect);
    }
    let speaks_of_work = among(WORK, head);
    if has(TRAFFIC) && (memory || !has(&["copy"])) || has(&["dram"]) && has(&["active"]) {
        return Some(Meaning::Bandwidth);
    }
    if memory && (used || !speaks_of_work) {
        let size = !used && (among(SIZE, last) || rest.iter().any(|word| among(SIZE, word)));
        return Some(if size {
            Meaning::Capacity
        } else {
            Meaning::Memory
        });
    }
    if busy {
        return Some(Meaning::Utilization);
    }
    if says(WORK) {
        return None;
    }
    if has(TAKEN) {
        // `gpus_in_use`, `gpu_workers_active`: how many there are, or how busy they are.
        return Some(if says(SEVERAL) {
            Meaning::Unclear
        } else {
            Meaning::Utilization
        });
    }
    if among(AGGREGATE, last) {
        return Some(Meaning::Utilization);
    }
    if owned {
        return None;
    }
    if says(NUMBER) {
        return Some(Meaning::Allocation);
    }
    // The cache was what the name measures, on a device that it only mentions.
    if cache {
        return Some(Meaning::KvUse);
    }
    Some(Meaning::Unclear)
}

/// Devices that other words are glued to.
const GLUED: [&str; 5] = ["vgpu", "gpu", "npu", "xpu", "cuda"];

/// Whether a word may be of a device or of a cache; most are not, and are not looked at further.
fn may_speak(word: &str) -> bool {
    is_device(word)
        || matches!(word, "cache" | "kvcache" | "kvstats")
        || GLUED.iter().any(|device| word.starts_with(device))
}

/// `gpuutil` as `gpu`, `util`.
fn unglued(words: &[String]) -> Vec<String> {
    let mut out = Vec::with_capacity(words.len());
    for word in words {
        let glued = GLUED.iter().find_map(|device| {
            let rest = word.strip_prefix(device)?;
            (is_measure(rest) || among(WORK, rest)).then_some((*device, rest))
        });
        match glued {
            Some((device, rest)) => out.extend([device.to_owned(), rest.to_owned()]),
            None => out.push(word.clone()),
        }
    }
    out
}

/// Cuts out the phrases that name a KV or prefix cache, with their measure: vLLM's
/// `gpu_cache_usage_perc` is not about the GPU. What stands around such a phrase still counts.
fn without_cache_phrases(words: &[String]) -> (Vec<String>, bool) {
    const MEASURE: &[&str] = &[
        "usage",
        "used",
        "util",
        "utilization",
        "utilisation",
        "hit",
        "hits",
        "hitrate",
        "queries",
        "query",
        "block",
        "blocks",
        "occupancy",
        "free",
        "rate",
    ];
    const TAIL: &[&str] = &[
        "perc",
        "percent",
        "percentage",
        "pct",
        "ratio",
        "rate",
        "total",
        "tokens",
    ];
    let mut out: Vec<String> = Vec::with_capacity(words.len());
    let mut cut = false;
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        match word {
            "kvstats" => cut = true,
            // The number of blocks that the KV cache was given.
            "gpu" | "cpu"
                if out.last().is_some_and(|last| last == "num")
                    && rest.peek() == Some(&"blocks") =>
            {
                out.pop();
                rest.next();
                cut = true;
            }
            "cache" | "kvcache" => {
                let mut named = word == "kvcache";
                while let Some(last) = out.last() {
                    if !matches!(last.as_str(), "kv" | "prefix") {
                        break;
                    }
                    named = true;
                    out.pop();
                }
                let measured = rest.peek().is_some_and(|next| among(MEASURE, next));
                if !(named || measured && out.last().is_some_and(|last| is_cache_side(last))) {
                    out.push(word.to_owned());
                    continue;
                }
                cut = true;
                if out.last().is_some_and(|last| is_cache_side(last)) {
                    out.pop();
                }
                while rest.next_if(|next| among(MEASURE, next)).is_some() {}
                while rest.next_if(|next| among(TAIL, next)).is_some() {}
            }
            _ => out.push(word.to_owned()),
        }
    }
    (out, cut)
}

/// The side on which vLLM keeps a cache.
fn is_cache_side(word: &str) -> bool {
    matches!(word, "gpu" | "cpu" | "npu" | "tpu" | "hpu" | "device")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::{Class, Name};

    fn of(name: &str) -> Option<Meaning> {
        meaning(Name::new(name).words())
    }

    #[test]
    fn renamed_device_metrics_are_told_by_their_words() {
        use Meaning::{Bandwidth, Memory, PowerThermal, Utilization};
        for (name, expected) in [
            ("gpu_utilization_percent", Utilization),
            ("cuda_test_gpu_avg", Utilization),
            ("kv:dcgm_gpu_util:avg", Utilization),
            ("decode_gpu_utilization", Utilization),
            ("gpuutil", Utilization),
            ("h100_util", Utilization),
            ("gpu0_busy", Utilization),
            ("datadogmetric@inference:vllm-gpu-util", Utilization),
            ("my_gpu_mem_used", Memory),
            ("gpumem", Memory),
            ("app_vram_usage", Memory),
            ("gpu_memory_available_bytes", Memory),
            ("nvidia_membw", Bandwidth),
            ("gpu_memory_bandwidth_util", Bandwidth),
            ("avg_gpu_temperature_celsius", PowerThermal),
            ("gpu_memory_clock", PowerThermal),
        ] {
            assert_eq!(of(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn work_and_caches_on_a_device_are_not_the_device() {
        for name in [
            "gpu_requests_waiting",
            "gpu_inference_latency_p95",
            "gpu_active_requests",
            "gpu_queue_utilization",
            "gpu_pool_tokens_per_second",
            "gpu_node_cpu_utilization",
            "gpu_pool_host_memory_usage",
            "http_requests_per_second",
            "decode_batch_utilization",
            "memory_used_percentage",
            "process_cpu_seconds_total",
        ] {
            let class = of(name).map_or(Class::Neutral, Meaning::class);
            assert_eq!(class, Class::Neutral, "{name}");
        }
        for name in [
            "gpu_cache_usage_perc",
            "vllm_gpu_cache_usage_perc",
            "my_gpu_kv_cache_usage",
            "gpu_kvcache_util",
            "gpu_prefix_cache_hit_rate",
            "num_gpu_blocks",
            "vllm:num_gpu_blocks_total",
            "kv_cache_utilization",
        ] {
            assert_eq!(of(name), Some(Meaning::KvUse), "{name}");
        }
    }

    #[test]
    fn a_cache_phrase_hides_nothing_beside_it() {
        assert_eq!(
            of("gpu_cache_usage_perc:dcgm_gpu_util"),
            Some(Meaning::Utilization)
        );
        assert_eq!(of("kv_cache_and_gpu_memory_used"), Some(Meaning::Memory));
        // Not a KV cache: the device's own.
        assert_eq!(of("dcgm_l2_cache"), Some(Meaning::Unclear));
    }

    #[test]
    fn what_is_handed_out_is_not_what_is_used() {
        for name in [
            "container_gpu_request",
            "pod_gpu_limit",
            "gpu_memory_limit_bytes",
            "gpu_count",
        ] {
            assert_eq!(of(name), Some(Meaning::Allocation), "{name}");
        }
        assert_eq!(of("gpu_memory_total_bytes"), Some(Meaning::Capacity));
        assert_eq!(of("gpu_memory_used_limit"), Some(Meaning::Memory));
    }

    #[test]
    fn a_bare_device_tells_nothing() {
        for name in [
            "gpu",
            "nvidia_signal",
            "dcgm_fi_dev",
            "gpu_pressure",
            "gpus_in_use",
            "gpu_workers_active",
        ] {
            assert_eq!(of(name), Some(Meaning::Unclear), "{name}");
        }
        assert_eq!(of("gpu_ecc_errors"), Some(Meaning::Health));
        assert_eq!(of("gpu_nvlink_throughput"), Some(Meaning::Interconnect));
    }
}
