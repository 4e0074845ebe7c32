{{- define "gangplank.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- /* Cut to 50: the longest suffix of ours is 13 long, and a Service's name has 63 characters. */ -}}
{{- define "gangplank.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "gangplank.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "gangplank.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gangplank.selector" -}}
app.kubernetes.io/name: {{ include "gangplank.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gangplank.labels" -}}
{{ include "gangplank.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gangplank.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "gangplank.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: give serviceAccount.name" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "gangplank.tlsSecret" -}}
{{- if and (eq .Values.tls.mode "secret") (not .Values.tls.secretName) -}}
{{- fail "tls.mode is secret: give tls.secretName, a Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- default (printf "%s-tls" (include "gangplank.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{- define "gangplank.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- /* Whether something may be denied: "everywhere", "somewhere" (by an override), or nothing. */ -}}
{{- define "gangplank.enforces" -}}
{{- $somewhere := "" -}}
{{- range get .Values.policy "overrides" | default list -}}
{{- if eq (get . "mode" | default "") "enforce" -}}{{- $somewhere = "somewhere" -}}{{- end -}}
{{- end -}}
{{- if eq (get .Values.policy "mode" | default "enforce") "enforce" -}}everywhere{{- else -}}{{ $somewhere }}{{- end -}}
{{- end -}}

{{- /* The policy file, as a map. */ -}}
{{- define "gangplank.policy" -}}
{{- merge (dict "apiVersion" "gangplank.dev/v1alpha1" "kind" "Policy") .Values.policy | toYaml -}}
{{- end -}}
