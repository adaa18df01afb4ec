"""The science of WCL: pretraining and evaluation without any service around it."""
