"""Score the teacher, its fair control and the splat reader on the same pictures."""
