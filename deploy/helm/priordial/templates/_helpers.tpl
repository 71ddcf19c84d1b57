{{- define "priordial.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "priordial.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "priordial.labels" -}}
{{ include "priordial.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "priordial.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "priordial.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "priordial.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "priordial.checked" -}}
{{- $sources := compact (list .Values.models.persistentVolumeClaim .Values.models.image .Values.models.hostPath .Values.models.url) }}
{{- if ne (len $sources) 1 }}
{{- fail (printf "models has %d sources; set exactly one of models.persistentVolumeClaim, models.image, models.hostPath and models.url" (len $sources)) }}
{{- end }}
{{- if not .Values.store.existingSecret }}
{{- fail "store.existingSecret is empty; name a Secret whose key 'store' holds postgresql://USER:PASSWORD@HOST/DATABASE" }}
{{- end }}
{{- if and (not .Values.apiKeys.existingSecret) (not .Values.apiKeys.allowAnonymous) }}
{{- fail "apiKeys.existingSecret is empty; name a Secret of API keys, or set apiKeys.allowAnonymous: true" }}
{{- end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling and keda are both enabled; two scalers of one Deployment work against each other: enable one" }}
{{- end }}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" (include "priordial.fullname" .)) }}
{{- fail (printf "the release is named '%s', and Kubernetes takes no Service named '%s'; choose a name of lower-case letters, digits and '-' that begins with a letter" .Release.Name (include "priordial.fullname" .)) }}
{{- end }}
{{- include "priordial.checkedPorts" . }}
{{- include "priordial.checkedScaling" . }}
{{- include "priordial.checkedResources" . }}
{{- $given := dict }}
{{- range (include "priordial.ownEnv" . | fromYamlArray) }}{{ $_ := set $given .name true }}{{ end }}
{{- range .Values.extraEnv }}
{{- if hasKey $given (default "" .name) }}
{{- fail (printf "extraEnv sets %s, which the chart sets already; use the value of the chart, or settings.*" .name) }}
{{- end }}
{{- end }}
{{- $drain := add (int .Values.preStopSeconds) (int (ceil (include "priordial.drainSeconds" . | float64))) }}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $drain) }}
{{- fail (printf "terminationGracePeriodSeconds is %d; it must be larger than preStopSeconds + settings.drainSeconds = %d" (int .Values.terminationGracePeriodSeconds) (int $drain)) }}
{{- end }}
{{- $copy := int64 (default 0 .Values.settings.modelsCacheMib) }}
{{- if and $copy (not .Values.models.url) }}
{{- fail (printf "settings.modelsCacheMib is %d, but models.url is empty; only models from a URL are copied: leave it out" $copy) }}
{{- end }}
{{- if and .Values.models.url (gt $copy (include "priordial.volumeMib" . | int64)) }}
{{- fail (printf "settings.modelsCacheMib is %d, more than models.cacheSize, %s: Kubernetes would end pods whose copy fills it; raise models.cacheSize, or leave settings.modelsCacheMib out" $copy .Values.models.cacheSize) }}
{{- end }}
{{- end }}

{{- /* Seconds of the drain: 0 is a value, null is the chart's default. */ -}}
{{- define "priordial.drainSeconds" -}}
{{- if kindIs "invalid" .Values.settings.drainSeconds }}5{{ else }}{{ .Values.settings.drainSeconds }}{{ end }}
{{- end }}

{{- /* Refuses a port that two servers of the pod, or two ports of the Service, would use. */ -}}
{{- define "priordial.checkedPorts" -}}
{{- $grpc := int (default 0 .Values.settings.grpcPort) }}
{{- $inside := list (list "the HTTP port of the pod" 8000) (list (printf "metricsPort, %d" (int .Values.metricsPort)) (int .Values.metricsPort)) }}
{{- if eq (int .Values.metricsPort) 8000 }}
{{- fail "metricsPort is 8000, which is also the HTTP port of the pod; choose another" }}
{{- end }}
{{- range $inside }}
{{- if eq $grpc (index . 1) }}
{{- fail (printf "settings.grpcPort is %d, which is also %s; choose another" $grpc (index . 0)) }}
{{- end }}
{{- end }}
{{- if eq (int .Values.service.port) (int .Values.metricsPort) }}
{{- fail (printf "service.port is %d, which is also metricsPort, %d; a Service has each port once: choose another" (int .Values.service.port) (int .Values.metricsPort)) }}
{{- end }}
{{- if eq (int .Values.service.port) $grpc }}
{{- fail (printf "service.port is %d, which is also settings.grpcPort, %d; a Service has each port once: choose another" (int .Values.service.port) $grpc) }}
{{- end }}
{{- end }}

{{- /* Refuses scalers that Kubernetes refuses, or that could not scale. */ -}}
{{- define "priordial.checkedScaling" -}}
{{- range $name := list "autoscaling" "keda" }}
{{- with index $.Values $name }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "%s.minReplicas is %d, more than %s.maxReplicas, %d; lower the one or raise the other" $name (int .minReplicas) $name (int .maxReplicas)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (default dict .Values.resources.requests).cpu) (not (default dict .Values.resources.limits).cpu) }}
{{- fail "autoscaling.enabled is true, but resources.requests.cpu is not set; it scales on the share of that CPU: set it, or use keda" }}
{{- end }}
{{- end }}

{{- /* Refuses requests above limits, and a GPU that would not be used. */ -}}
{{- define "priordial.checkedResources" -}}
{{- $limits := default dict .Values.resources.limits }}
{{- range $name, $request := default dict .Values.resources.requests }}
{{- $limit := get $limits $name | toString }}
{{- if $limit }}
{{- $asked := include "priordial.amount" ($request | toString) | float64 }}
{{- $allowed := include "priordial.amount" $limit | float64 }}
{{- if gt $asked $allowed }}
{{- fail (printf "resources.requests.%s is %v, more than resources.limits.%s, %v; Kubernetes takes no such pod: lower the one or raise the other" $name $request $name $limit) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.gpu.enabled (eq (default "" .Values.settings.provider) "cpu") }}
{{- fail "gpu.enabled is true, but settings.provider is cpu, which uses no GPU; leave out one of the two" }}
{{- end }}
{{- if .Values.gpu.enabled }}
{{- range $name := list "limits" "requests" }}
{{- if hasKey (default dict (index $.Values.resources $name)) $.Values.gpu.resource }}
{{- fail (printf "resources.%s has %s, which gpu.count sets; leave it out there" $name $.Values.gpu.resource) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A quantity of Kubernetes, such as 500m, 2Gi or 1e3, as a number. */ -}}
{{- define "priordial.amount" -}}
{{- $suffix := regexFind "([KMGTPE]i|[numkMGTPE])$" . }}
{{- $factor := get (dict "" 1.0 "n" 1e-9 "u" 1e-6 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0) $suffix }}
{{- mulf (trimSuffix $suffix . | float64) $factor }}
{{- end }}

{{- /* MiB of the volume for the local copy of models. */ -}}
{{- define "priordial.volumeMib" -}}
{{- $unit := get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[MGT]i$" .Values.models.cacheSize) }}
{{- mul (regexFind "^[0-9]+" .Values.models.cacheSize | int64) $unit }}
{{- end }}

{{- define "priordial.env" -}}
{{ include "priordial.ownEnv" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The variables that the chart sets itself. */ -}}
{{- define "priordial.ownEnv" -}}
- {name: PRIORDIAL_HOST, value: 0.0.0.0}
- {name: PRIORDIAL_PORT, value: "8000"}
- {name: PRIORDIAL_METRICS_PORT, value: {{ .Values.metricsPort | quote }}}
{{- if .Values.models.url }}
- {name: PRIORDIAL_MODELS, value: {{ .Values.models.url | quote }}}
- {name: PRIORDIAL_MODELS_CACHE, value: /models}
{{- else }}
- {name: PRIORDIAL_MODELS, value: /models}
{{- end }}
- name: PRIORDIAL_STORE
  valueFrom: {secretKeyRef: {name: {{ .Values.store.existingSecret }}, key: {{ .Values.store.key }}}}
{{- with .Values.store.readsKey }}
- name: PRIORDIAL_STORE_READS
  valueFrom: {secretKeyRef: {name: {{ $.Values.store.existingSecret }}, key: {{ . }}}}
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- {name: PRIORDIAL_KEYS, value: /etc/priordial/api_keys}
{{- else }}
- {name: PRIORDIAL_ALLOW_ANONYMOUS, value: "true"}
{{- end }}
{{- $settings := merge (dict) .Values.settings (dict "logFormat" "json" "drainSeconds" 5) }}
{{- if .Values.models.url }}{{ $settings = merge (dict) $settings (dict "modelsCacheMib" (div (mul 9 (include "priordial.volumeMib" . | int64)) 10 | max 1)) }}{{ end }}
{{- if .Values.gpu.enabled }}{{ $settings = merge (dict) $settings (dict "provider" "cuda") }}{{ end }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
- {name: PRIORDIAL_{{ $name | snakecase | upper }}, value: {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value | quote }}{{ else }}{{ $value | quote }}{{ end }}{{ else }}{{ $value | quote }}{{ end }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "priordial.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
