-- Health of an EventIndex for Argo CD: resource.customizations.health.orisun.io_EventIndex
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end
local ready, stalled, reconciling = found["Ready"], found["Stalled"], found["Reconciling"]
if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.reason .. ": " .. stalled.message}
end
if ready ~= nil and (ready.reason == "ClusterPaused" or ready.reason == "ClusterHibernates") then
  return {status = "Suspended", message = ready.message}
end
if ready ~= nil and ready.status == "True" and (reconciling == nil or reconciling.status ~= "True") then
  return {status = "Healthy", message = ready.message}
end
if reconciling ~= nil and reconciling.status == "True" then
  health.message = reconciling.message
elseif ready ~= nil then
  -- neither at work nor in trouble: somebody wants it so
  return {status = "Suspended", message = ready.message}
end
return health
