"""The pages, one module for each subject: functions from a request of somebody who may see them to a response."""
