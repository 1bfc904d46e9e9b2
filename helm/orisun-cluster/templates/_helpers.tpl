{{- define "orisun-cluster.name" -}}
{{- default .Release.Name .Values.name }}
{{- end }}

{{/* The name of the resource of a boundary or an index: those may have what Kubernetes does not take. */}}
{{- define "orisun-cluster.resource" -}}
{{- . | replace "_" "-" | lower }}
{{- end }}

{{/* metadata of a resource: dict "root" $ "name" NAME "wave" WAVE; waves matter to Argo CD alone */}}
{{- define "orisun-cluster.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
  app.kubernetes.io/name: orisun
  app.kubernetes.io/instance: {{ include "orisun-cluster.name" .root }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  {{- with .root.Values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  argocd.argoproj.io/sync-wave: {{ .wave | quote }}
  {{- with .root.Values.annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
