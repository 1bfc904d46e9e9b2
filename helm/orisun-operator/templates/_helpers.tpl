{{- define "orisun-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of everything that is in the cluster once a release: at most 50 characters, so that suffixes fit. */}}
{{- define "orisun-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of what the whole Kubernetes cluster shares: two releases of one name in two namespaces are two. */}}
{{- define "orisun-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "orisun-operator.fullname" .) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "orisun-operator.selector" -}}
app.kubernetes.io/name: {{ include "orisun-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "orisun-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "orisun-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: orisun
{{- end }}

{{- define "orisun-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "orisun-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "orisun-operator.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{/* What the operator may do in a namespace that it looks after. */}}
{{- define "orisun-operator.rules" -}}
- apiGroups: [orisun.io]
  resources: [orisunclusters, eventindexes]
  verbs: [get, list, watch]
# their finalizers
- apiGroups: [orisun.io]
  resources: [boundaries]
  verbs: [get, list, watch, patch]
- apiGroups: [orisun.io]
  resources: [orisunclusters/status, boundaries/status, eventindexes/status]
  verbs: [patch]
# owner references that block the deletion of their owner want this where OwnerReferencesPermissionEnforcement is on
- apiGroups: [orisun.io]
  resources: [orisunclusters/finalizers, boundaries/finalizers, eventindexes/finalizers]
  verbs: [update]
# what a cluster is made of; Secrets also because specs refer to them
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
# those of a certificate or a password that the spec does not want any more go
- apiGroups: [""]
  resources: [configmaps, secrets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# a rollout replaces its pods one at a time
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, create, patch]
# whether the namespace is going away
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
# optional neighbours
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, create, patch, delete]
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, create, patch, delete]
{{- end }}
