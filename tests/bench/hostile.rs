//! Queries that are written to cost much. Each has the length that is asked for, or a little more.

/// A name for each shape, and the query.
pub(crate) fn queries(length: usize) -> Vec<(&'static str, String)> {
    let fill = |piece: &str| piece.repeat(length.div_ceil(piece.len()));
    let within = |before: &str, piece: &str, after: &str| {
        let room = length.saturating_sub(before.len() + after.len());
        format!("{before}{}{after}", piece.repeat(room / piece.len()))
    };
    let gpu = "DCGM_FI_DEV_GPU_UTIL";
    vec![
        ("one letter", fill("a")),
        ("short words", fill("a ")),
        ("device words", fill("gpu ")),
        ("metrics", fill("DCGM_FI_DEV_GPU_UTIL ")),
        ("metrics with a suffix", fill("my_gpu_seconds_total_avg ")),
        ("humps", fill("gPu")),
        ("underscores", fill("_")),
        ("dotted name", fill("gpu.")),
        ("colons", fill("a:")),
        ("pipes", fill("a|")),
        ("slashes", fill("a.io/")),
        ("angles", fill("<")),
        ("figures", fill("1 ")),
        ("two-byte letters", fill("é")),
        ("spaces", fill(" ")),
        ("lines", fill("\n")),
        ("comments", fill("#\n")),
        ("comment marks", fill("#")),
        ("sums", within("a", "+a", "")),
        ("signs", within("", "-", "a")),
        ("comparisons", within("a", "==a", "")),
        ("ands", within("a", " and a", "")),
        ("commas", within("f(a", ",a", ")")),
        ("open brackets", fill("(")),
        ("closed brackets", fill(")")),
        ("nested brackets", {
            let half = length / 2;
            format!("{}a{}", "(".repeat(half), ")".repeat(half))
        }),
        ("nested calls", {
            let half = length / 5;
            format!("{}a{}", "sum(".repeat(half), ")".repeat(half))
        }),
        ("calls side by side", fill("sum(a) ")),
        ("braces", fill("{")),
        ("double braces", fill("{{")),
        ("braces and letters", fill("{a")),
        ("placeholders", fill("${a}")),
        ("open placeholders", fill("${")),
        ("open calls of the shell", fill("$(")),
        ("dollars", fill("$")),
        ("template calls", fill("{{a}}")),
        (
            "far template ends",
            fill(&format!("{{{{{}", "a".repeat(126))),
        ),
        ("square brackets", fill("[")),
        ("ranges", fill("a[5m]")),
        ("templated ranges", fill("a[$x]")),
        ("double quotes", fill("\"")),
        ("single quotes", fill("'")),
        ("backticks", fill("`")),
        ("quoted words", fill("\"gpu_util\" ")),
        ("quoted texts", fill("'gpu util fb used mem ' ")),
        (
            "quoted letters",
            fill("'a b c d e f g h i j k l m n o p q r s t ' "),
        ),
        ("search", within("SEARCH('", "gpu_x ", "')")),
        ("searches", fill("'a=\"b c d e f g h\"' ")),
        ("selects", fill("select ")),
        (
            "a wide select",
            within("select ", "avg(gpu_x),", "a from b"),
        ),
        ("froms", within("select a ", "from ", "")),
        ("escapes", within("{__name__=\"", "\\x44", "\"}")),
        ("escaped quotes", within("{a=\"", "\\\"", "\"}")),
        ("labels", within("a{", "a=\"b\",", "}")),
        (
            "negated names",
            within("{", "__name__!=\"x\",", "__name__=~\".+\"}"),
        ),
        (
            "alternatives",
            within("{__name__=\"a\"", " or __name__=\"a\"", "}"),
        ),
        ("pattern of letters", within("{__name__=~\"", "a", "\"}")),
        ("pattern of stars", within("{__name__=~\"", "(.*)*", "\"}")),
        ("pattern of choices", within("{__name__=~\"", "a|", "\"}")),
        (
            "pattern of classes",
            within("{__name__=~\"", "\\\\w", "\"}"),
        ),
        (
            "pattern of counts",
            within("{__name__=~\"", "(a{99}){99}", "\"}"),
        ),
        ("patterns", within("a", " or {__name__=~\".*a.*b\"}", "")),
        ("label patterns", within("a", " or {a=~\"(.{9}){9}\"}", "")),
        ("two patterns of choices", {
            let many = (0..22).fold(String::new(), |many, number| {
                many + &number.to_string() + ".*|"
            });
            format!("{{__name__=~\"({many}a)+\"}} + {{__name__=~\"({many}b)+\"}}")
        }),
        (
            "two patterns beside many names",
            format!(
                "{{__name__=~\".*a.*b.*c\",{}}}",
                "__name__!~\".*x.*y.*z\",".to_owned() + &"__name__!=\"x\",".repeat(60)
            ),
        ),
        ("datadog", fill("avg:gpu.x{a:b}by{c}+")),
        ("datadog formula", fill("moving_rollup(")),
        ("stackdriver", fill("metric.type=\"a.io/gpu/x\" ")),
        ("sumo", fill("metric=gpu_x ")),
        ("flux", fill("r._field==\"gpu_x\" ")),
        ("signalflow", fill("data('gpu.x').")),
        ("graphite", fill("a.*.gpu.{b,c}.")),
        (
            "json",
            within("{\"query\":{", "\"a\":{\"gpu_x\":[\"b c\"]},", "}}"),
        ),
        (
            "metricsql",
            within("WITH (", "a = gpu_x,", format!(") median({gpu})").as_str()),
        ),
        ("unparsed selectors", fill("a{b=c} ")),
        ("unparsed names", within("median({", "\"gpu_x\",", "})")),
    ]
}
