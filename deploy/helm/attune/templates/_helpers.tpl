{{- define "attune.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "attune.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "attune.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "attune.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "attune.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "attune.selector" . }}
{{- end }}

{{- define "attune.selector" -}}
app.kubernetes.io/name: {{ include "attune.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of the replicas, and of what is in front of them. */}}
{{- define "attune.replicaSelector" -}}
{{ include "attune.selector" . }}
app.kubernetes.io/component: replica
{{- end }}

{{- define "attune.envoySelector" -}}
{{ include "attune.selector" . }}
app.kubernetes.io/component: envoy
{{- end }}

{{- define "attune.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "attune.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "attune.image" -}}
{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "attune.claim" -}}
{{- default (printf "%s-models" (include "attune.fullname" .)) .Values.models.claim.existing }}
{{- end }}

{{/* How long requests in flight may go on after the notice, in seconds. */}}
{{- define "attune.drainSeconds" -}}
{{- add .Values.stopping.longestStreamSeconds .Values.stopping.graceSeconds }}
{{- end }}

{{/* All that a replica may take to stop: the two waits, the drain, and half a minute to unload the models. */}}
{{- define "attune.terminationSeconds" -}}
{{- add .Values.stopping.preStopSeconds .Values.stopping.noticeSeconds (include "attune.drainSeconds" .) 30 }}
{{- end }}

{{/* Envoy renews its connections after five minutes: a client has gone to another one by then. */}}
{{- define "attune.envoyPreStopSeconds" -}}
{{- add 300 .Values.stopping.longestStreamSeconds }}
{{- end }}

{{- define "attune.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "attune.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "attune.validate" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling and keda are both on, and would scale against each other: set autoscaling.enabled to false" }}
{{- end }}
{{- if and .Values.envoy.tls.enabled (not .Values.envoy.tls.secretName) }}
{{- fail "envoy.tls is on: name the secret with tls.crt and tls.key in envoy.tls.secretName" }}
{{- end }}
{{- if and (eq .Values.models.source "claim") (not .Values.models.claim.existing) (not .Values.models.claim.create) }}
{{- fail "models.source is claim: name one in models.claim.existing, or set models.claim.create" }}
{{- end }}
{{- if ne (eq .Values.profile "embedded") (not .Values.gpu.enabled) }}
{{- fail (printf "profile %s and gpu.enabled %v: all but embedded need one" .Values.profile .Values.gpu.enabled) }}
{{- end }}
{{- end }}

{{/* A quantity such as 700m as a decimal number, which is what KEDA takes. */}}
{{- define "attune.decimal" -}}
{{- if hasSuffix "m" . }}{{ divf (trimSuffix "m" . | float64) 1000 }}{{ else }}{{ . }}{{ end }}
{{- end }}
