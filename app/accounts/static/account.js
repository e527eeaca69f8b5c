// Sends the token from the URL's fragment, and the password that is entered, to the API. Nothing is sent before.
"use strict";

const form = document.querySelector("form");
const password = document.querySelector("#password");
const button = document.querySelector("button");
const message = document.querySelector("#message");

let token = new URLSearchParams(location.hash.slice(1)).get("token");
history.replaceState(null, "", location.pathname); // so that the token is not in the history

function say(text, { isError = false, isFinal = false } = {}) {
  message.textContent = text;
  message.className = isError ? "error" : "";
  form.hidden = isFinal;
  if (isFinal) {
    message.focus();
  }
}

async function send() {
  const response = await fetch(form.dataset.path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token, [password.name]: password.value }),
  });
  if (response.ok) {
    say(form.dataset.done, { isFinal: true });
    return;
  }
  const { error } = await response.json();
  // 400: the link is not valid any more. Everything else, such as a wrong password, can be tried again.
  say(`${error}.`, { isError: true, isFinal: response.status === 400 });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  say("");
  try {
    await send();
  } catch {
    say("The service cannot be reached. Try again.", { isError: true });
  }
  button.disabled = false;
  if (!form.hidden) {
    password.focus();
  }
});

document.querySelector("#show").addEventListener("change", (event) => {
  password.type = event.target.checked ? "text" : "password";
});

if (token) {
  password.focus();
} else {
  say("This link is incomplete. Open it from the mail again, or copy all of it.", { isError: true, isFinal: true });
}
