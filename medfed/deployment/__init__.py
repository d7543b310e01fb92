"""A federation across machines: the hub service, the site service, policies, approvals and enrolment."""
