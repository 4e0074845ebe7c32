#![allow(
    clippy::needless_pass_by_value,
    clippy::redundant_clone,
    clippy::type_complexity,
    reason = "tables read best with their values in place"
)]

use serde_json::{Value, json};

use super::*;

fn around<'a>() -> Surroundings<'a> {
    static NOTHING: std::sync::LazyLock<Facts> = std::sync::LazyLock::new(Facts::unknown);
    Surroundings {
        engines: Engines::builtin(),
        config_maps: ConfigMaps {
            facts: &NOTHING,
            namespace: None,
        },
        injected: Vec::new(),
        declared: false,
    }
}

fn with_gpus(mut container: Value, gpus: u64) -> Value {
    container["resources"] = json!({"limits": {"nvidia.com/gpu": gpus}});
    json!({"spec": {"containers": [container]}})
}

/// Title, description, ranks, nodes and evidence of the one server in a pod of 8 GPUs.
fn look(container: Value) -> Option<(String, String, Count, Option<Count>, Option<String>)> {
    let template = with_gpus(container, 8);
    let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
    let server = server(&template, &around())?;
    let p = &server.parallelism;
    Some((
        server.title().to_owned(),
        p.describe(),
        p.world,
        p.nodes.as_ref().map(|nodes| nodes.count),
        p.multi_node.as_ref().map(|evidence| evidence.text.clone()),
    ))
}

fn vllm(args: &[&str]) -> (String, Count) {
    let found = look(json!({"image": "vllm/vllm-openai:v0.11.0", "args": args})).unwrap();
    (found.1, found.2)
}

const fn known(number: u64) -> Count {
    Count::Known(number)
}

#[test]
fn vllm_flags_are_read_as_its_parser_does() {
    for (args, world) in [
        (vec!["--tensor-parallel-size", "8"], known(8)),
        (vec!["--tensor-parallel-size=8"], known(8)),
        (vec!["-tp", "8"], known(8)),
        (vec!["-tp=8"], known(8)),
        (vec!["-tp8"], known(1)),
        (vec!["--tensor_parallel_size", "8"], known(8)),
        (vec!["--tensor_parallel_size=8"], known(8)),
        (vec!["--tensor-parallel", "8"], known(8)),
        (vec!["--tensor", "8"], known(8)),
        (vec!["--data-parallel", "8"], known(1)),
        (vec!["-tp", "8", "-tp", "1"], known(1)),
        (vec!["-tp", "2", "-pp", "2"], known(4)),
        (vec!["-tp", "4", "-dcp", "2"], known(4)),
        (vec!["-tp", "2", "-pp", "2", "-pcp", "2"], known(8)),
        (vec!["-tp", "2", "-dp", "4"], known(8)),
        (
            vec!["-tp", "2", "-dp", "4", "--data-parallel-rank", "1"],
            known(2),
        ),
        (
            vec![
                "--speculative-config",
                "{\"draft_tensor_parallel_size\": 8}",
            ],
            known(1),
        ),
        (vec!["--mm-encoder-tp-mode", "data"], known(1)),
        (vec!["--tensor-parallel-size", "eight"], Count::Unknown),
        (vec!["--tensor-parallel-size", "0"], Count::Unknown),
        (
            vec!["--tensor-parallel-size", "99999999999999999999"],
            Count::Unknown,
        ),
        (vec!["--tensor-parallel-size"], Count::Unknown),
        (vec!["--config", "/etc/vllm.yaml"], Count::Unknown),
        (vec!["--tensor-parallel-size", "$(TP)"], Count::Unknown),
        (vec![], known(1)),
    ] {
        assert_eq!(vllm(&args).1, world, "{args:?}");
    }
    assert_eq!(vllm(&["-tp", "8", "-pp", "2"]).0, "TP 8 × PP 2");
}

#[test]
fn engines_are_read_by_their_own_flags_and_variables() {
    let sglang = |args: &[&str]| {
        let mut all = vec!["python3", "-m", "sglang.launch_server"];
        all.extend(args);
        look(json!({"image": "lmsysorg/sglang:v0.5", "command": all})).unwrap()
    };
    assert_eq!(sglang(&["--tp", "16", "--nnodes", "2"]).2, known(16));
    assert_eq!(sglang(&["--tp", "16", "--nnodes", "2"]).3, Some(known(2)));
    assert_eq!(sglang(&["--tp-size", "8", "--dp-size", "2"]).2, known(16));
    assert_eq!(
        sglang(&["--tp", "8", "--dp", "8", "--enable-dp-attention"]).2,
        known(8)
    );
    assert_eq!(sglang(&["--tp_size", "8"]).2, known(1));
    assert_eq!(sglang(&["--pp", "2"]).2, known(1));

    let trt = |args: &[&str]| {
        look(json!({"image": "x", "command": ["trtllm-serve"], "args": args}))
            .unwrap()
            .2
    };
    assert_eq!(trt(&["m", "--tp_size=8", "--pp_size", "2"]), known(16));
    assert_eq!(
        trt(&["m", "--tp_size=8", "--extra_llm_api_options", "x.yaml"]),
        Count::Unknown
    );

    let tgi = |args: &[&str], env: Value| {
        look(json!({
            "image": "ghcr.io/huggingface/text-generation-inference:3", "args": args, "env": env
        }))
        .unwrap()
        .2
    };
    assert_eq!(tgi(&["--num-shard=4"], json!([])), known(4));
    assert_eq!(
        tgi(&[], json!([{"name": "NUM_SHARD", "value": "2"}])),
        known(2)
    );
    assert_eq!(tgi(&[], json!([])), known(8), "silence takes every GPU");
    assert_eq!(tgi(&["--sharded", "false"], json!([])), known(1));
    let hidden = json!([{"name": "CUDA_VISIBLE_DEVICES", "value": "0,1"}]);
    assert_eq!(tgi(&[], hidden), Count::Unknown);

    let nim = |env: Value| {
        look(json!({"image": "nvcr.io/nim/meta/llama-3.1-70b-instruct:1", "env": env}))
            .unwrap()
            .2
    };
    assert_eq!(
        nim(json!([{"name": "NIM_TENSOR_PARALLEL_SIZE", "value": "4"}])),
        known(4)
    );
    let both = json!([
        {"name": "NIM_TENSOR_PARALLEL_SIZE", "value": "4"},
        {"name": "NIM_PASSTHROUGH_ARGS", "value": "--tensor-parallel-size 8"}
    ]);
    assert_eq!(nim(both), known(8));
    assert_eq!(
        nim(json!([{"name": "NIM_MODEL_PROFILE", "value": "vllm-fp16-tp2"}])),
        known(2)
    );
    assert_eq!(nim(json!([])), Count::Unknown);

    let lmdeploy = look(json!({
        "image": "openmmlab/lmdeploy", "command": ["lmdeploy", "serve", "api_server", "m", "--tp", "4"]
    }));
    assert_eq!(lmdeploy.unwrap().2, known(4));
    let djl = look(json!({
        "image": "deepjavalibrary/djl-serving:0.30-lmi",
        "env": [{"name": "OPTION_TENSOR_PARALLEL_DEGREE", "value": "max"}]
    }));
    assert_eq!(djl.unwrap().2, known(8));
    let triton = look(json!({
        "image": "nvcr.io/nvidia/tritonserver:24.06-py3",
        "command": ["python3", "/opt/launch_triton_server.py", "--world_size", "4"]
    }));
    assert_eq!(triton.unwrap().2, known(4));
    let mpi = look(json!({
        "image": "nvcr.io/nvidia/tritonserver:24.06-py3",
        "command": ["mpirun", "-n", "8", "--allow-run-as-root", "tritonserver", "--model-repository=/m"]
    }));
    assert_eq!(mpi.unwrap().2, known(8));
}

#[test]
fn scripts_and_variables_are_followed() {
    let script = |command: &[&str], env: Value| {
        look(json!({"image": "vllm/vllm-openai:v1", "command": command, "env": env}))
            .unwrap()
            .2
    };
    let tp = json!([{"name": "TP", "value": "8"}]);
    let none = json!([]);
    assert_eq!(
        script(
            &["bash", "-lc", "exec vllm serve m \\\n  -tp 8"],
            none.clone()
        ),
        known(8)
    );
    assert_eq!(
        script(&["sh", "-c", "sleep 1 && vllm serve m -tp $TP"], tp.clone()),
        known(8)
    );
    assert_eq!(
        script(&["sh", "-c", "vllm serve m -tp ${N:-4}"], none.clone()),
        known(4)
    );
    assert_eq!(
        script(&["sh", "-c", "vllm serve m -tp ${TP:-4}"], tp.clone()),
        known(8)
    );
    assert_eq!(
        script(&["sh", "-c", "vllm serve m -tp $(TP)"], tp.clone()),
        known(8)
    );
    assert_eq!(
        script(
            &["sh", "-c", "vllm serve m -tp $(nvidia-smi -L | wc -l)"],
            none.clone()
        ),
        Count::Unknown
    );
    assert_eq!(
        script(
            &[
                "sh",
                "-c",
                "exec python3 -m vllm.entrypoints.openai.api_server \"$@\"",
                "x",
                "-tp",
                "4"
            ],
            none.clone()
        ),
        known(4)
    );
    assert_eq!(
        script(
            &[
                "/bin/bash",
                "-c",
                "cat <<EOF > c\n-tp 2\nEOF\nnumactl -N 0 vllm serve m -tp 4"
            ],
            none.clone()
        ),
        known(4)
    );
    assert_eq!(
        script(
            &[
                "sh",
                "-c",
                "if x; then vllm serve m -tp 8; else vllm serve m -tp 4; fi"
            ],
            none
        ),
        Count::Unknown
    );
}

#[test]
fn launchers_in_front_of_an_engine_are_seen_through() {
    for command in [
        vec!["uv", "run", "vllm", "serve", "m", "-tp", "4"],
        vec!["env", "A=b", "vllm", "serve", "m", "-tp", "4"],
        vec!["tini", "--", "vllm", "serve", "m", "-tp", "4"],
        vec![
            "/usr/bin/python3.12",
            "-u",
            "-m",
            "vllm.entrypoints.openai.api_server",
            "-tp=4",
        ],
        vec![
            "sh",
            "-c",
            "nohup timeout 9 vllm serve m -tp 4 2>&1 | tee log",
        ],
    ] {
        let found = look(json!({"image": "example/base", "command": command}));
        assert_eq!(found.unwrap().2, known(4), "{command:?}");
    }
}

#[test]
fn config_maps_are_read_and_secrets_are_unknown() {
    let map = std::sync::Arc::new(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "serving", "namespace": "n"},
        "data": {"tp": "8", "NUM": "2"}
    }));
    let facts = Facts::from_documents([&map]);
    let world = |env: Value, env_from: Value, arg: &str| {
        let template = with_gpus(
            json!({"image": "vllm/vllm-openai", "args": ["-tp", arg], "env": env, "envFrom": env_from}),
            8,
        );
        let around = Surroundings {
            config_maps: ConfigMaps {
                facts: &facts,
                namespace: Some("n"),
            },
            ..around()
        };
        let template = PodTemplate::new(&template, FieldPath::new());
        server(&template, &around).unwrap().parallelism.world
    };
    let key = |name: &str, kind: &str| json!([{"name": "TP", "valueFrom": {kind: {"name": name, "key": "tp"}}}]);
    assert_eq!(
        world(key("serving", "configMapKeyRef"), json!([]), "$(TP)"),
        known(8)
    );
    assert_eq!(
        world(key("other", "configMapKeyRef"), json!([]), "$(TP)"),
        Count::Unknown
    );
    assert_eq!(
        world(key("serving", "secretKeyRef"), json!([]), "$(TP)"),
        Count::Unknown
    );
    let from = json!([{"configMapRef": {"name": "serving"}}]);
    assert_eq!(world(json!([]), from, "$(NUM)"), known(2));
}

#[test]
fn signs_of_several_pods_are_told() {
    let sign = |args: &[&str]| {
        look(json!({"image": "vllm/vllm-openai", "args": args}))
            .unwrap()
            .4
    };
    assert_eq!(sign(&["-tp", "8"]), None);
    assert_eq!(
        sign(&["-tp", "16", "--nnodes", "2"]).as_deref(),
        Some("2 nodes")
    );
    assert_eq!(
        sign(&["-tp", "8", "--nnodes", "1", "--node-rank", "0"]),
        None
    );
    assert_eq!(sign(&["--headless"]).as_deref(), Some("--headless"));
    assert_eq!(
        sign(&["-tp", "16", "--distributed-executor-backend", "ray"]).as_deref(),
        Some("--distributed-executor-backend ray")
    );
    assert_eq!(sign(&["--distributed-executor-backend", "mp"]), None);
    assert!(sign(&["-dp", "16", "-dpl", "8"]).is_some());
    let ray = look(json!({
        "image": "vllm/vllm-openai",
        "command": ["sh", "-c", "ray start --head && vllm serve m -tp 16"]
    }));
    assert_eq!(ray.unwrap().4.as_deref(), Some("ray start"));
}

#[test]
fn what_serves_nothing_is_no_server() {
    for container in [
        json!({"image": "nvcr.io/nvidia/tritonserver:24.06-py3-sdk", "command": ["/bin/bash", "-c", "--"], "args": ["while true; do sleep 30; done;"]}),
        json!({"image": "vllm/vllm-openai", "command": ["bash", "-c"], "args": ["trap 'exit 0' TERM; sleep 9999 & wait"]}),
        json!({"image": "vllm/vllm-openai", "command": ["sleep", "infinity"]}),
        json!({"image": "vllm/vllm-openai", "command": ["vllm", "bench", "serve"]}),
        json!({"image": "vllm/vllm-openai", "command": ["sh", "-c", "pip install x; sleep inf"]}),
        json!({"image": "quay.io/example/vllme:1"}),
        json!({"image": "example/kvcached-runtime:dev"}),
        json!({"image": "public.ecr.aws/eks-distro/kubernetes/pause:3.2"}),
        json!({"image": "pytorch/pytorch", "command": ["torchrun", "--nproc-per-node", "8", "train.py"]}),
    ] {
        assert_eq!(look(container.clone()), None, "{container}");
    }
    // Without an accelerator nothing serves on one.
    let template = json!({"spec": {"containers": [{"image": "vllm/vllm-openai"}]}});
    assert!(server(&PodTemplate::new(&template, FieldPath::new()), &around()).is_none());
}

#[test]
fn an_unread_entry_point_of_a_server_image_is_a_server_of_unknown_ranks() {
    let found = look(json!({
        "image": "nvcr.io/nvidia/tritonserver:24.06", "command": ["/scripts/entrypoint.sh"]
    }));
    let (title, _, world, ..) = found.unwrap();
    assert_eq!(
        (title.as_str(), world),
        ("Triton Inference Server", Count::Unknown)
    );
    let wrapped = look(json!({
        "image": "example/house", "command": ["/run.sh"], "args": ["--tensor-parallel-size", "8"]
    }));
    assert_eq!(wrapped.unwrap().2, known(8));
}

#[test]
fn the_declaration_makes_a_server_and_init_containers_do_not_count() {
    let template = with_gpus(json!({"image": "example/house", "command": ["/run.sh"]}), 8);
    let template = PodTemplate::new(&template, FieldPath::new());
    assert!(server(&template, &around()).is_none());
    let declared = Surroundings {
        declared: true,
        ..around()
    };
    let found = server(&template, &declared).unwrap();
    assert_eq!(
        (found.engine, found.parallelism.world),
        (None, Count::Unknown)
    );

    let mut template = with_gpus(json!({"image": "vllm/vllm-openai"}), 1);
    template["spec"]["initContainers"] =
        json!([{"image": "vllm/vllm-openai", "args": ["--tensor-parallel-size", "8"]}]);
    let template = PodTemplate::new(&template, FieldPath::new());
    assert_eq!(
        server(&template, &around()).unwrap().parallelism.world,
        known(1)
    );
}

#[test]
fn the_path_points_at_the_flag() {
    let template = with_gpus(
        json!({"image": "vllm/vllm-openai", "args": ["m", "-tp", "8"]}),
        8,
    );
    let template = PodTemplate::new(&template, FieldPath::of(&["spec", "template"]));
    let found = server(&template, &around()).unwrap();
    assert_eq!(
        found.parallelism.path().unwrap().to_string(),
        "spec.template.spec.containers[0].args[1]"
    );
}

proptest::proptest! {
    #[test]
    fn any_command_line_is_read_without_panic(
        command in proptest::collection::vec("[ -~\n$(){}'\"`=<>;|&\\\\]{0,40}", 0..4),
        args in proptest::collection::vec("(-tp|-tp=|--tensor-parallel-size|--nnodes=|--|-|\\$\\(A\\)|sh|-c|vllm serve){0,1}.{0,12}", 0..6),
        value in ".{0,20}",
    ) {
        let container = json!({
            "image": "vllm/vllm-openai", "command": command, "args": args,
            "env": [{"name": "A", "value": value}, {"name": "B", "value": "$(A)$(A)"}]
        });
        let _ = look(container);
        let script = command.concat();
        let _ = look(json!({"image": "x/sglang", "command": ["bash", "-c", script]}));
    }
}
